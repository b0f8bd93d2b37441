#include "common/device_watch.h"

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace kvferry {

absl::Status DeviceWatch::Explain(const absl::Status& status) {
  if (status.ok() || !check_) return status;
  absl::Status why;
  {
    absl::MutexLock lock(&mutex_);
    if (!lost_.ok()) return lost_;
    const absl::Status checked = check_();
    if (checked.ok()) return status;
    lost_ = absl::UnavailableError(absl::StrCat("the device is lost: ", checked.message(),
                                                "; first met by: ", status.message()));
    why = lost_;
  }
  Log(LogLevel::kError, "device_lost", {{"why", why}});
  if (on_lost_) on_lost_(why);
  return why;
}

}  // namespace kvferry
