#pragma once

#include <cstdint>
#include <span>

// The quality bench: what a compressed cache does to a model's answers, measured through the code
// that serves them. Pure arithmetic here.
namespace kvferry::bench {

// One position of a text: what the model with a lossy cache thinks comes next, against what the
// exact model thinks.
struct Comparison {
  double nll = 0;       // -log q(the token that follows), nats
  double kl = 0;        // KL(exact || tested) over the whole vocabulary, nats
  bool agrees = false;  // both have the same likeliest token
  int top5 = 0;         // tokens that are among the 5 likeliest of both
  bool sure = false;    // the exact model's likeliest token leads the next by more than kSureMargin
};

inline constexpr double kSureMargin = 0.1;  // nats

// exact, tested: [vocabulary] logits, at least two. Computed in double, nothing truncated, no
// epsilon: logits that are not numbers give a kl that is none.
Comparison Compare(std::span<const float> exact, std::span<const float> tested, std::int32_t next);

double NegativeLogLikelihood(std::span<const float> logits, std::int32_t next);

// The first of the largest.
std::int32_t LikeliestToken(std::span<const float> logits);

}  // namespace kvferry::bench
