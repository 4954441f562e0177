// The one list of parameters. Initialisation, checkpoints, AdamW, gradient norm, reduction buckets, optimizer shards
// and safetensors all walk it; nothing else lists the weights. All parameters of a model lie in one flat buffer, a
// block's side by side, each starting at a multiple of kAlignment elements; gradients, master weights and moments use
// the same offsets.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

/// identity: what changes nothing, a square map (or several below each other) or factors of one.
enum class Init : std::uint8_t { zeros, ones, normal, identity };

/// How (part of) a parameter is called in a Hugging Face checkpoint; rows that no view covers are vocabulary padding.
struct HfView {
  std::string name;            // "transformer.h.0.attn.c_attn.weight"
  std::int64_t row_begin = 0;  // rows of our tensor that it covers
  std::int64_t row_count = 0;
  bool transpose = false;  // stored (in, out), as GPT-2's Conv1D is
};

struct Parameter {
  std::string name;                 // "h.0.attn.qkv.weight"
  std::vector<std::int64_t> shape;  // one or two dimensions
  std::int64_t offset = 0;          // elements into the flat buffer
  bool decay = false;               // weight decay applies (matrices and embeddings)
  Init init = Init::zeros;
  float std_dev = 0;  // of Init::normal
  // Init::normal: rows [0, leading_rows) start from leading_std_dev instead (queries and keys of a packed projection).
  std::int64_t leading_rows = 0;
  float leading_std_dev = 0;
  std::vector<HfView> hf;

  [[nodiscard]] std::int64_t numel() const;
  [[nodiscard]] std::int64_t rows() const { return shape[0]; }
};

/// A flat buffer with a place for every parameter: their own offsets, or others where parameters take turns in the same
/// memory.
struct FlatMemory {
  Tensor flat;
  std::vector<std::int64_t> offsets;  // a parameter; empty = Parameter::offset

  FlatMemory() = default;
  FlatMemory(const Tensor& tensor) : flat(tensor) {}  // NOLINT: a plain flat buffer is one of these
  FlatMemory(const Tensor& tensor, std::vector<std::int64_t> places) : flat(tensor), offsets(std::move(places)) {}
};

class ParameterList {
 public:
  static constexpr std::int64_t kAlignment = 64;  // elements; 128 bytes of bf16

  /// Appends a parameter and gives it its offset; returns its index.
  std::size_t add(Parameter parameter);
  [[nodiscard]] const std::vector<Parameter>& all() const { return all_; }
  /// Elements of the flat buffer, padding included.
  [[nodiscard]] std::int64_t flat_size() const { return size_; }
  /// Elements of the parameters themselves.
  [[nodiscard]] std::int64_t count() const;
  [[nodiscard]] const Parameter* find(std::string_view name) const;
  /// The parameter as a view of a flat buffer.
  [[nodiscard]] Tensor view(const FlatMemory& memory, std::size_t index) const;

 private:
  std::vector<Parameter> all_;
  std::int64_t size_ = 0;
};

/// Fills `flat` (f32, CPU, flat_size elements): every element is a function of (seed, parameter's number, element), so
/// that the same seed gives the same weights everywhere. Padding between parameters becomes zero.
void initialize_parameters(const ParameterList& list, std::uint64_t seed, const Tensor& flat);

}  // namespace sfa
