#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "transport/transport.h"
#include "transport/ucx/address.h"

// Which way payloads go between two processes. Both sides decide it for themselves from the two
// addresses, and come to the same.
namespace kvferry::transport {

// The paths that UCX has with these transports (its setting TLS), and perhaps device memory, best
// first. kFailedPrecondition: `required` is not empty and not among them.
absl::StatusOr<std::vector<Path>> OfferPaths(std::string_view tls, bool device_memory,
                                             std::string_view required);
// `tls` with what device memory needs.
std::string WithCuda(const std::string& tls);

// The first of `paths`, which are those of `local`, that leads to `peer`.
// kFailedPrecondition: none does; says why each does not.
absl::StatusOr<Path> ChoosePath(const std::vector<Path>& paths, const UcxAddress& local,
                                const UcxAddress& peer);

// Whether `lanes`, which UCX has chosen for the connection to `peer`, are what `path` needs.
// kFailedPrecondition: with what there is instead.
absl::Status CheckLanes(const std::vector<std::string>& lanes, std::string_view peer,
                        const Path& path);

}  // namespace kvferry::transport
