// Tells ThreadSanitizer about abseil's synchronization. The distribution's abseil is not built with
// the sanitizer, so that without this every member that an absl::Mutex guards looks like a race.
// Each function takes the place of abseil's by symbol interposition, says what it orders, and calls
// the original. Part of builds with KVFERRY_SANITIZE=thread only.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace {

// The definition of `symbol` that this one hides, called as a member of `Object`.
template <typename Result, typename Object, typename... Args>
class Original {
 public:
  explicit Original(const char* symbol)
      : function_(reinterpret_cast<Result (*)(Object, Args...)>(dlsym(RTLD_NEXT, symbol))) {
    if (function_ == nullptr) {
      std::fprintf(stderr, "tsan_sync: %s is not in this abseil: %s\n", symbol, dlerror());
      std::abort();
    }
  }
  Result operator()(Object object, Args... args) const { return function_(object, args...); }

 private:
  Result (*function_)(Object, Args...);
};

void Acquire(const void* sync) { __tsan_acquire(const_cast<void*>(sync)); }
void Release(const void* sync) { __tsan_release(const_cast<void*>(sync)); }

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

#define KVF_MANGLED(name) "_ZN4absl7debian3" name
#define KVF_MANGLED_CONST(name) "_ZNK4absl7debian3" name

void Mutex::Lock() {
  static const Original<void, Mutex*> original(KVF_MANGLED("5Mutex4LockEv"));
  original(this);
  Acquire(this);
}

void Mutex::Unlock() {
  static const Original<void, Mutex*> original(KVF_MANGLED("5Mutex6UnlockEv"));
  Release(this);
  original(this);
}

bool Mutex::TryLock() {
  static const Original<bool, Mutex*> original(KVF_MANGLED("5Mutex7TryLockEv"));
  const bool locked = original(this);
  if (locked) Acquire(this);
  return locked;
}

void Mutex::ReaderLock() {
  static const Original<void, Mutex*> original(KVF_MANGLED("5Mutex10ReaderLockEv"));
  original(this);
  Acquire(this);
}

void Mutex::ReaderUnlock() {
  static const Original<void, Mutex*> original(KVF_MANGLED("5Mutex12ReaderUnlockEv"));
  Release(this);
  original(this);
}

void Mutex::LockWhen(const Condition& condition) {
  static const Original<void, Mutex*, const Condition&> original(
      KVF_MANGLED("5Mutex8LockWhenERKNS0_9ConditionE"));
  original(this, condition);
  Acquire(this);
}

void Mutex::Await(const Condition& condition) {
  static const Original<void, Mutex*, const Condition&> original(
      KVF_MANGLED("5Mutex5AwaitERKNS0_9ConditionE"));
  Release(this);
  original(this, condition);
  Acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static const Original<bool, Mutex*, const Condition&, Duration> original(
      KVF_MANGLED("5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE"));
  Release(this);
  const bool met = original(this, condition, timeout);
  Acquire(this);
  return met;
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static const Original<bool, Mutex*, const Condition&, Time> original(
      KVF_MANGLED("5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE"));
  Release(this);
  const bool met = original(this, condition, deadline);
  Acquire(this);
  return met;
}

// Abseil evaluates a waiter's condition on whichever thread lets go of the mutex, under the mutex
// but after our Unlock has said that it is over.
bool Condition::Eval() const {
  static const Original<bool, const Condition*> original(KVF_MANGLED_CONST("9Condition4EvalEv"));
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  const bool met = original(this);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  return met;
}

void CondVar::Wait(Mutex* mutex) {
  static const Original<void, CondVar*, Mutex*> original(KVF_MANGLED("7CondVar4WaitEPNS0_5MutexE"));
  Release(mutex);
  original(this, mutex);
  Acquire(mutex);
}

void Notification::Notify() {
  static const Original<void, Notification*> original(KVF_MANGLED("12Notification6NotifyEv"));
  Release(this);
  original(this);
}

void Notification::WaitForNotification() const {
  static const Original<void, const Notification*> original(
      KVF_MANGLED_CONST("12Notification19WaitForNotificationEv"));
  original(this);
  Acquire(this);
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  static const Original<bool, const Notification*, Duration> original(
      KVF_MANGLED_CONST("12Notification30WaitForNotificationWithTimeoutENS0_8DurationE"));
  const bool notified = original(this, timeout);
  if (notified) Acquire(this);
  return notified;
}

#undef KVF_MANGLED
#undef KVF_MANGLED_CONST

ABSL_NAMESPACE_END
}  // namespace absl
