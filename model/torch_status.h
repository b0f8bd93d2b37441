#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvferry::model {

// Runs `work`, which gives a status, and turns what LibTorch throws into one: no exception leaves
// this folder.
template <typename Work>
absl::Status CatchTorch(const char* operation, Work work) {
  try {
    return work();
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat(operation, ": ", error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    return absl::InternalError(absl::StrCat(operation, ": ", error.what_without_backtrace()));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(operation, ": out of memory"));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat(operation, ": ", error.what()));
  }
}

}  // namespace kvferry::model
