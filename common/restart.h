#pragma once

namespace kvferry {

// Puts `name=value` into the environment and starts this program again in the same process, for
// settings that a library reads before main. Returns only when that fails (and has said so). Call
// it first, before any thread.
void RestartWithEnvironment(const char* name, const char* value, char** argv);

// Restarts so that threads of GNU's OpenMP runtime, LibTorch's, wait without spinning for long
// after each product: they would take the cores from the threads that attend, quantize and ship.
// Returns at once where the environment says already how they wait.
void KeepOpenMpFromSpinning(char** argv);

}  // namespace kvferry
