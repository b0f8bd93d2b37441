#include "calibrate/pareto.h"

#include <algorithm>
#include <numeric>

namespace kvferry::calibrate {

std::vector<int> ParetoFront(std::span<const Point> points) {
  std::vector<int> order(points.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return points[a].cost != points[b].cost ? points[a].cost < points[b].cost
                                            : points[a].loss < points[b].loss;
  });
  std::vector<int> front;
  for (const int i : order) {
    if (front.empty() || points[i].loss < points[front.back()].loss) front.push_back(i);
  }
  return front;
}

double Hypervolume(std::span<const Point> points, const Point& worst) {
  double area = 0, loss = worst.loss;
  for (const int i : ParetoFront(points)) {
    if (points[i].cost >= worst.cost || points[i].loss >= loss) continue;
    area += (worst.cost - points[i].cost) * (loss - points[i].loss);
    loss = points[i].loss;
  }
  return area;
}

}  // namespace kvferry::calibrate
