// What ranks do together against sums made on one rank.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "core/arena.h"
#include "dist/communicator.h"
#include "dist/gradient_buckets.h"
#include "ops/reduce/reduce.h"

namespace sfa::test {

struct Checker {
  Communicator& ranks;
  Context ctx;
  std::vector<Buffer> memory;

  explicit Checker(Communicator& r, Device device) : ranks(r), ctx(device) {}

  // What rank r holds: small whole numbers, so that sums are exact in every type and order.
  static double value(int rank, std::int64_t i) { return static_cast<double>((i * 7 + rank * 13) % 17 - 8); }
  [[nodiscard]] double sum(std::int64_t i) const {
    double s = 0;
    for (int r = 0; r < ranks.size(); ++r) s += value(r, i);
    return s;
  }

  static std::vector<std::byte> encode(DType type, const std::vector<double>& x, bool doubles) {
    std::vector<std::byte> bytes(x.size() * size_of(type));
    for (std::size_t i = 0; i < x.size(); ++i) {
      std::byte* to = bytes.data() + i * size_of(type);
      if (type == DType::f32) {
        const auto v = static_cast<float>(x[i]);
        std::memcpy(to, &v, sizeof v);
      } else if (type == DType::bf16) {
        const std::uint16_t v = bf16_bits(static_cast<float>(x[i]));
        std::memcpy(to, &v, sizeof v);
      } else if (doubles) {
        std::memcpy(to, &x[i], sizeof x[i]);
      } else {
        const auto v = static_cast<std::int64_t>(x[i]);
        std::memcpy(to, &v, sizeof v);
      }
    }
    return bytes;
  }
  Tensor upload(DType type, const std::vector<double>& x, bool doubles = false) {
    const std::vector<std::byte> bytes = encode(type, x, doubles);
    memory.emplace_back(ctx.device(), bytes.size(), "a test's tensor");
    const Tensor t(memory.back().data(), type, ctx.device(), {static_cast<std::int64_t>(x.size())});
    ctx.copy(t.data, t.device, bytes.data(), Device::cpu, bytes.size());
    ctx.synchronize();
    return t;
  }
  Tensor mine(DType type, std::int64_t n, bool doubles = false) {
    std::vector<double> x;
    for (std::int64_t i = 0; i < n; ++i) x.push_back(value(ranks.rank(), i));
    return upload(type, x, doubles);
  }
  template <class Expected>
  void expect(const Tensor& t, const FlatRange& where, Expected&& expected, const char* what, bool doubles = false) {
    ranks.join(ctx);
    std::vector<std::byte> bytes(static_cast<std::size_t>(t.bytes()));
    ctx.copy(bytes.data(), Device::cpu, t.data, t.device, bytes.size());
    ctx.synchronize();
    std::vector<double> x;
    for (std::int64_t i = where.begin; i < where.end(); ++i) x.push_back(expected(i));
    const std::vector<std::byte> right = encode(t.dtype, x, doubles);
    const auto* from = bytes.data() + where.begin * static_cast<std::int64_t>(size_of(t.dtype));
    require(right.empty() || std::memcmp(from, right.data(), right.size()) == 0, "rank {}: {} of {} is wrong",
            ranks.rank(), what, t);
  }

  void all() {
    const int size = ranks.size(), rank = ranks.rank();
    for (const std::int64_t n : {1, 5, 64, 1000, 300'001}) {
      const std::vector<FlatRange> parts = split_evenly(n, size, 64);
      const FlatRange whole{0, n}, own = parts[static_cast<std::size_t>(rank)];
      for (const DType type : {DType::f32, DType::bf16, DType::i64}) {
        Tensor t = mine(type, n);
        ranks.all_reduce(ctx, t);
        expect(
            t, whole, [&](std::int64_t i) { return sum(i); }, "all_reduce");
        if (type != DType::i64) {
          t = mine(type, n);
          ranks.reduce_scatter(ctx, t, parts);
          expect(
              t, own, [&](std::int64_t i) { return sum(i); }, "reduce_scatter");
          ranks.all_gather(ctx, t, parts);
          expect(
              t, whole, [&](std::int64_t i) { return sum(i); }, "all_gather");
        }
        t = mine(type, n);
        ranks.broadcast(ctx, t, size - 1);
        expect(
            t, whole, [&](std::int64_t i) { return value(size - 1, i); }, "broadcast");
        const int next = (rank + 1) % size, before = (rank + size - 1) % size;
        t = mine(type, n);
        const Tensor in = upload(type, std::vector<double>(static_cast<std::size_t>(n)));
        ranks.exchange(ctx, t, next, in, before);
        expect(
            in, whole, [&](std::int64_t i) { return value(before, i); }, "exchange");
        if (rank == 0) ranks.send(ctx, t, size - 1);
        if (rank == size - 1) {
          ranks.receive(ctx, in, 0);
          expect(
              in, whole, [&](std::int64_t i) { return value(0, i); }, "receive");
        }
        ranks.join(ctx);
        ctx.synchronize();
        memory.clear();
      }
      const Tensor t = mine(DType::i64, n, true);
      ranks.all_reduce_f64(ctx, t);
      expect(
          t, whole, [&](std::int64_t i) { return sum(i); }, "all_reduce_f64", true);
      buckets(n);
      memory.clear();
    }
  }

  // Sums in shared memory follow each other without the host's waiting: what is summed next must not reach a slower
  // rank's sum before.
  bool shared() {
    bool copied = false;
    for (const DType type : {DType::f32, DType::bf16}) {
      if (type == DType::bf16 && !ctx.on_cuda()) continue;        // bf16 gradients are for GPUs
      const std::int64_t n = ctx.on_cuda() ? 5'000'000 : 50'000;  // on GPUs parts of more than one piece
      const Tensor region = upload(type, std::vector<double>(static_cast<std::size_t>(n + 64)));
      const Tensor t = region.slice(0, 64, n),
                   total = upload(DType::f32, std::vector<double>(static_cast<std::size_t>(n)));
      const std::vector<Tensor> fresh = {mine(type, n),
                                         upload(type, std::vector<double>(static_cast<std::size_t>(n), 1))};
      copied = ranks.share(region, type == DType::f32 ? n / 2 : n / 5);  // one piece and several
      // In turn: parts of all ranks, all of it for one, and of some nothing.
      std::vector<std::vector<FlatRange>> plans = {split_evenly(n, ranks.size(), 64)};
      for (int owner = 0; owner < ranks.size(); ++owner) {
        std::vector<FlatRange> parts(static_cast<std::size_t>(ranks.size()), FlatRange{0, 0});
        parts[static_cast<std::size_t>(owner)] = {owner, n - 2 * owner};
        plans.push_back(parts);
      }
      constexpr int kRounds = 24;
      std::vector<std::int64_t> times(static_cast<std::size_t>(n) * 2);
      for (int round = 0; round < kRounds; ++round) {
        const std::size_t which = static_cast<std::size_t>(round) % 2;
        const std::vector<FlatRange>& parts = plans[static_cast<std::size_t>(round) % plans.size()];
        ctx.copy(t.data, t.device, fresh[which].data, t.device, static_cast<std::size_t>(t.bytes()));
        ranks.reduce_scatter(ctx, t, parts);
        ranks.join(ctx);
        const FlatRange own = parts[static_cast<std::size_t>(ranks.rank())];
        if (own.count > 0) add_to(ctx, t.slice(0, own.begin, own.count), total.slice(0, own.begin, own.count));
        for (std::int64_t i = own.begin; i < own.end(); ++i) ++times[static_cast<std::size_t>(i) * 2 + which];
      }
      expect(
          total, {0, n},
          [&](std::int64_t i) {
            const std::int64_t* seen = &times[static_cast<std::size_t>(i) * 2];
            return static_cast<double>(seen[0]) * sum(i) + static_cast<double>(seen[1]) * ranks.size();
          },
          "a sum in shared memory");
      ranks.share({});
      memory.clear();
    }
    return copied;
  }

  // Named in any order, in part or not at all, every gradient is summed once.
  void buckets(std::int64_t n) {
    for (const bool owned : {false, true})
      for (const std::int64_t bucket : {std::int64_t{100}, n + 1})
        for (const bool staged : {false, true}) {
          if (staged && !ctx.on_cuda()) continue;  // bf16 gradients are for GPUs
          const Tensor t = mine(staged ? DType::bf16 : DType::f32, n);
          const std::vector<FlatRange> parts = split_evenly(n, ranks.size(), 64);
          const Tensor staging = staged ? upload(DType::f32, std::vector<double>(70'000)) : Tensor{};
          GradientBuckets b(ranks, t, {bucket, owned ? parts : std::vector<FlatRange>{}, staging});
          b.final(ctx, n - n / 3, n);
          b.final(ctx, n / 2, n - n / 3);
          b.final(ctx, n / 8, n / 4);
          b.finish(ctx);
          expect(
              t, owned ? parts[static_cast<std::size_t>(ranks.rank())] : FlatRange{0, n},
              [&](std::int64_t i) { return sum(i); }, "a sum in buckets");
          memory.clear();
        }
  }
};

}  // namespace sfa::test
