#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "transport/ucx/ucx_peer.h"

namespace kvferry::transport {

// The connections of a transport, by handle and by the incarnation of who is there now. Thread:
// progress thread only.
class PeerTable {
 public:
  bool empty() const { return peers_.empty(); }
  // In any order; not while callbacks run that add or remove.
  const auto& all() const { return peers_; }

  // Replaces a peer of the same incarnation as the one that FindIncarnation names.
  void Add(std::unique_ptr<UcxPeer> peer) {
    by_incarnation_[peer->incarnation] = peer->handle;
    const PeerHandle handle = peer->handle;
    peers_.emplace(handle, std::move(peer));
  }
  std::unique_ptr<UcxPeer> Remove(PeerHandle handle) {
    std::unique_ptr<UcxPeer> peer = std::move(peers_.at(handle));
    peers_.erase(handle);
    const auto found = by_incarnation_.find(peer->incarnation);
    if (found != by_incarnation_.end() && found->second == handle) by_incarnation_.erase(found);
    return peer;
  }

  // Null: there is none.
  UcxPeer* Find(PeerHandle handle) const {
    const auto found = peers_.find(handle);
    return found == peers_.end() ? nullptr : found->second.get();
  }
  // 0: there is none.
  PeerHandle FindIncarnation(std::uint64_t incarnation) const {
    const auto found = by_incarnation_.find(incarnation);
    return found == by_incarnation_.end() ? PeerHandle{} : found->second;
  }
  std::vector<PeerHandle> Where(bool (*wanted)(const UcxPeer&)) const {
    std::vector<PeerHandle> found;
    for (const auto& [handle, peer] : peers_) {
      if (wanted(*peer)) found.push_back(handle);
    }
    return found;
  }

 private:
  absl::flat_hash_map<PeerHandle, std::unique_ptr<UcxPeer>> peers_;
  absl::flat_hash_map<std::uint64_t, PeerHandle> by_incarnation_;
};

}  // namespace kvferry::transport
