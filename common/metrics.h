#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

// Counters, gauges and histograms of one process, exposed as Prometheus text (prometheus-cpp).
// Passed in, never global. Names are kvferry_<folder>_<what>_<unit>[_total]; docs/metrics.md lists
// them all.
namespace kvferry {

class Counter {
 public:
  virtual ~Counter() = default;
  virtual void Add(std::uint64_t n = 1) = 0;
  virtual std::uint64_t value() const = 0;
};
class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void Set(double value) = 0;
};
class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void Observe(double value) = 0;
};

using Labels = std::map<std::string, std::string>;

// Thread: any. Returned references live as long as the registry; asking twice gives the same
// object.
class Metrics {
 public:
  static std::unique_ptr<Metrics> Create();
  virtual ~Metrics() = default;
  virtual Counter& GetCounter(std::string_view name, std::string_view help,
                              const Labels& labels = {}) = 0;
  virtual Gauge& GetGauge(std::string_view name, std::string_view help,
                          const Labels& labels = {}) = 0;
  virtual Histogram& GetHistogram(std::string_view name, std::string_view help,
                                  std::vector<double> bounds, const Labels& labels = {}) = 0;
  // All counters, by name with labels: for Admin.GetState.
  virtual std::map<std::string, std::uint64_t> CounterValues() const = 0;
  // Serves http://address/metrics until the registry dies. kUnavailable: the port is in use.
  virtual absl::Status Serve(const std::string& listen_address) = 0;
};

}  // namespace kvferry
