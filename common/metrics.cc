#include "common/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <exception>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"

namespace kvferry {
namespace {

class PrometheusCounter : public Counter {
 public:
  explicit PrometheusCounter(prometheus::Counter& counter) : counter_(counter) {}
  void Add(std::uint64_t n) override { counter_.Increment(static_cast<double>(n)); }
  std::uint64_t value() const override { return static_cast<std::uint64_t>(counter_.Value()); }

 private:
  prometheus::Counter& counter_;
};

class PrometheusGauge : public Gauge {
 public:
  explicit PrometheusGauge(prometheus::Gauge& gauge) : gauge_(gauge) {}
  void Set(double value) override { gauge_.Set(value); }

 private:
  prometheus::Gauge& gauge_;
};

class PrometheusHistogram : public Histogram {
 public:
  explicit PrometheusHistogram(prometheus::Histogram& histogram) : histogram_(histogram) {}
  void Observe(double value) override { histogram_.Observe(value); }

 private:
  prometheus::Histogram& histogram_;
};

std::string NameWithLabels(std::string_view name, const Labels& labels) {
  std::string text(name);
  if (labels.empty()) return text;
  return absl::StrCat(text, "{", absl::StrJoin(labels, ",", absl::PairFormatter("=")), "}");
}

class PrometheusMetrics : public Metrics {
 public:
  PrometheusMetrics() : registry_(std::make_shared<prometheus::Registry>()) {}

  Counter& GetCounter(std::string_view name, std::string_view help, const Labels& labels) override {
    const absl::MutexLock lock(&mutex_);
    std::unique_ptr<Counter>& slot = counters_[NameWithLabels(name, labels)];
    if (slot == nullptr) {
      auto& family = prometheus::BuildCounter()
                         .Name(std::string(name))
                         .Help(std::string(help))
                         .Register(*registry_);
      slot = std::make_unique<PrometheusCounter>(family.Add(labels));
    }
    return *slot;
  }

  Gauge& GetGauge(std::string_view name, std::string_view help, const Labels& labels) override {
    const absl::MutexLock lock(&mutex_);
    std::unique_ptr<Gauge>& slot = gauges_[NameWithLabels(name, labels)];
    if (slot == nullptr) {
      auto& family = prometheus::BuildGauge()
                         .Name(std::string(name))
                         .Help(std::string(help))
                         .Register(*registry_);
      slot = std::make_unique<PrometheusGauge>(family.Add(labels));
    }
    return *slot;
  }

  Histogram& GetHistogram(std::string_view name, std::string_view help, std::vector<double> bounds,
                          const Labels& labels) override {
    const absl::MutexLock lock(&mutex_);
    std::unique_ptr<Histogram>& slot = histograms_[NameWithLabels(name, labels)];
    if (slot == nullptr) {
      auto& family = prometheus::BuildHistogram()
                         .Name(std::string(name))
                         .Help(std::string(help))
                         .Register(*registry_);
      slot = std::make_unique<PrometheusHistogram>(family.Add(labels, std::move(bounds)));
    }
    return *slot;
  }

  std::map<std::string, std::uint64_t> CounterValues() const override {
    const absl::MutexLock lock(&mutex_);
    std::map<std::string, std::uint64_t> values;
    for (const auto& [name, counter] : counters_) values[name] = counter->value();
    return values;
  }

  // The exposer throws when it cannot listen: the exception ends here.
  absl::Status Serve(const std::string& listen_address) override {
    try {
      exposer_ = std::make_unique<prometheus::Exposer>(listen_address, 1);
      exposer_->RegisterCollectable(registry_);
    } catch (const std::exception& error) {
      return absl::UnavailableError(absl::StrCat("metrics.listen_address: cannot listen on '",
                                                 listen_address, "': ", error.what()));
    }
    return absl::OkStatus();
  }

 private:
  // The exposer keeps a weak reference to what it collects, hence shared.
  const std::shared_ptr<prometheus::Registry> registry_;
  mutable absl::Mutex mutex_;
  std::map<std::string, std::unique_ptr<Counter>> counters_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::unique_ptr<Gauge>> gauges_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::unique_ptr<Histogram>> histograms_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace

std::unique_ptr<Metrics> Metrics::Create() { return std::make_unique<PrometheusMetrics>(); }

}  // namespace kvferry
