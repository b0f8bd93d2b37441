#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Early returns for absl::Status and absl::StatusOr. The only two control-flow macros of the
// project.

#define KVF_RETURN_IF_ERROR(expr)                                                \
  do {                                                                           \
    if (::absl::Status kvf_status = (expr); !kvf_status.ok()) return kvf_status; \
  } while (false)

// What is declared and assigned cannot stand in parentheses.
// NOLINTBEGIN(bugprone-macro-parentheses)
#define KVF_ASSIGN_OR_RETURN(lhs, expr) \
  KVF_ASSIGN_OR_RETURN_IMPL_(KVF_CONCAT_(kvf_or_, __LINE__), lhs, expr)

#define KVF_ASSIGN_OR_RETURN_IMPL_(var, lhs, expr) \
  auto var = (expr);                               \
  if (!var.ok()) return std::move(var).status();   \
  lhs = *std::move(var)
// NOLINTEND(bugprone-macro-parentheses)
#define KVF_CONCAT_(a, b) KVF_CONCAT_IMPL_(a, b)
#define KVF_CONCAT_IMPL_(a, b) a##b
