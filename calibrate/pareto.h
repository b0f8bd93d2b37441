#pragma once

#include <span>
#include <vector>

namespace kvferry::calibrate {

// What a choice costs and what it loses; less of both is better.
struct Point {
  double cost = 0, loss = 0;
  bool operator==(const Point&) const = default;
};

// The points that no other dominates (none has less of one and no more of the other), by rising
// cost; of equal points the first.
std::vector<int> ParetoFront(std::span<const Point> points);

// The area that a front dominates up to `worst` (of which points beyond do not count): the larger,
// the better the front.
double Hypervolume(std::span<const Point> points, const Point& worst);

}  // namespace kvferry::calibrate
