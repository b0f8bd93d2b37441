#pragma once

#include <span>

// Sums over all logits of a position, in double and with the machine's vector instructions: a
// vocabulary has tens of thousands of them, and every position of the quality bench is summed up
// twice.
namespace kvferry::bench {

// Of exp(logits - lead); nothing of what is no number. lead: the largest logit, or near it.
double SumExp(std::span<const float> logits, double lead);

struct WeightedSums {
  double weights = 0;      // of w = exp(exact - lead)
  double differences = 0;  // of w * (exact - tested); no number where one of the two is none
};

// exact, tested: of equal length.
WeightedSums SumDifferences(std::span<const float> exact, std::span<const float> tested,
                            double lead);

}  // namespace kvferry::bench
