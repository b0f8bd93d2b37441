#pragma once

namespace kvferry {

// Puts `name=value` into the environment and starts this program again in the same process, for
// settings that a library reads before main. Returns only when that fails (and has said so). Call
// it first, before any thread.
void RestartWithEnvironment(const char* name, const char* value, char** argv);

}  // namespace kvferry
