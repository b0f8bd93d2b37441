#include "calibrate/nsga2.h"

#include <cmath>
#include <exception>
#include <map>
#include <pagmo/algorithms/nsga2.hpp>
#include <pagmo/bfe.hpp>
#include <pagmo/population.hpp>
#include <pagmo/problem.hpp>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace kvferry::calibrate {
namespace {

using pagmo::vector_double;

// Carries a status through pagmo.
class EvaluateFailed : public std::exception {
 public:
  explicit EvaluateFailed(absl::Status status) : status_(std::move(status)) {}
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

// What has been evaluated. pagmo copies problems: all copies refer to one book. Genes that can have
// one value only are none of pagmo's variables.
class Book {
 public:
  Book(std::span<const int> sizes, const Evaluate& evaluate)
      : evaluate_(evaluate), genes_(sizes.size()) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] > 1) free_.push_back(i);
    }
  }

  const std::vector<std::size_t>& free() const { return free_; }
  Genes ToGenes(const double* values) const {
    Genes genes(genes_, 0);
    for (std::size_t i = 0; i < free_.size(); ++i) {
      genes[free_[i]] = static_cast<int>(std::lround(values[i]));
    }
    return genes;
  }
  vector_double Fitness(const std::vector<Genes>& asked) {
    vector_double fitness;
    for (const Point& point : Points(asked)) {
      fitness.insert(fitness.end(), {point.cost, point.loss});
    }
    return fitness;
  }

  std::vector<Point> Points(const std::vector<Genes>& asked) {
    std::vector<Genes> missing;
    std::map<Genes, Point> fresh;
    for (const Genes& genes : asked) {
      if (!known_.contains(genes) && fresh.emplace(genes, Point()).second) {
        missing.push_back(genes);
      }
    }
    if (!missing.empty()) {
      const absl::StatusOr<std::vector<Point>> points = evaluate_(missing);
      if (!points.ok()) throw EvaluateFailed(points.status());
      for (std::size_t i = 0; i < missing.size(); ++i) {
        known_[missing[i]] = (*points)[i];
        all_.push_back({missing[i], (*points)[i]});
      }
    }
    std::vector<Point> points;
    for (const Genes& genes : asked) points.push_back(known_.at(genes));
    return points;
  }

  std::vector<Individual>& all() { return all_; }

 private:
  const Evaluate& evaluate_;
  const std::size_t genes_;
  std::vector<std::size_t> free_;
  std::map<Genes, Point> known_;
  std::vector<Individual> all_;
};

// pagmo wants default constructors; what it runs are copies of ours.
struct Search {
  vector_double upper;
  Book* book = nullptr;

  std::pair<vector_double, vector_double> get_bounds() const {
    return {vector_double(upper.size(), 0), upper};
  }
  static vector_double::size_type get_nobj() { return 2; }
  vector_double::size_type get_nix() const { return upper.size(); }
  vector_double fitness(const vector_double& values) const {
    return book->Fitness({book->ToGenes(values.data())});
  }
  template <typename Archive>
  void serialize(Archive&, unsigned) {}
};

// A whole generation at once.
struct Generation {
  vector_double operator()(const pagmo::problem& problem, const vector_double& values) const {
    Book& book = *problem.extract<Search>()->book;
    std::vector<Genes> genes;
    for (std::size_t at = 0; at < values.size(); at += problem.get_nx()) {
      genes.push_back(book.ToGenes(values.data() + at));
    }
    return book.Fitness(genes);
  }
  template <typename Archive>
  void serialize(Archive&, unsigned) {}
};

void Run(std::span<const int> sizes, const Nsga2Options& options, Book& book) {
  Search search{.upper = {}, .book = &book};
  for (const std::size_t gene : book.free()) search.upper.push_back(sizes[gene] - 1);
  std::mt19937_64 random(options.seed);
  std::vector<vector_double> first(static_cast<std::size_t>(options.population));
  std::vector<Genes> genes;
  for (vector_double& values : first) {
    for (const std::size_t gene : book.free()) {
      values.push_back(static_cast<double>(random() % static_cast<std::uint64_t>(sizes[gene])));
    }
    genes.push_back(book.ToGenes(values.data()));
  }
  const vector_double fitness = book.Fitness(genes);
  if (book.free().empty()) return;
  pagmo::population population(pagmo::problem(search), 0, options.seed);
  for (std::size_t i = 0; i < first.size(); ++i) {
    population.push_back(first[i], {fitness[2 * i], fitness[2 * i + 1]});
  }
  // One gene of each child changes, on average.
  const double mutation = 1.0 / static_cast<double>(book.free().size());
  pagmo::nsga2 algorithm(static_cast<unsigned>(options.generations), 0.95, 10, mutation, 10,
                         options.seed);
  algorithm.set_bfe(pagmo::bfe(Generation()));
  algorithm.evolve(std::move(population));
}

}  // namespace

absl::StatusOr<std::vector<Individual>> RunNsga2(std::span<const int> sizes,
                                                 const Nsga2Options& options,
                                                 const Evaluate& evaluate) {
  if (options.population < 8 || options.population % 4 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("population is ", options.population,
                                                   ", must be a multiple of 4, at least 8"));
  }
  Book book(sizes, evaluate);
  try {
    Run(sizes, options, book);
  } catch (const EvaluateFailed& failed) {
    return failed.status();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("NSGA-II: ", error.what()));
  }
  return std::move(book.all());
}

}  // namespace kvferry::calibrate
