#include "hf/weights.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "hf/element.h"

namespace sfa::hf {
namespace {

// Saved from the model without its head, the names lack the first word.
std::string without_prefix(const std::string& name) {
  for (const std::string_view prefix : {"transformer.", "model."})
    if (name.starts_with(prefix)) return name.substr(prefix.size());
  return name;
}

struct Found {
  std::string name;
  const SafetensorsSet::Entry* entry = nullptr;
};
Found find_view(const SafetensorsSet& set, const HfView& view) {
  for (const std::string& name : {view.name, without_prefix(view.name)})
    if (const auto* entry = set.find(name)) return {name, entry};
  return {view.name, nullptr};
}

std::vector<std::int64_t> shape_of(const Parameter& p, const HfView& view) {
  if (p.shape.size() == 1) return {view.row_count};
  if (view.transpose) return {p.shape[1], view.row_count};
  return {view.row_count, p.shape[1]};
}

// Masks and tables that older transformers saved with the weights, and a tied head's copy of the embedding.
bool may_be_there(std::string_view name) {
  for (const std::string_view end : {".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"})
    if (name.ends_with(end)) return true;
  return name == "lm_head.weight" || name == "rotary_emb.inv_freq";
}

bool may_lack(const Parameter& p, Missing missing) {
  return missing == Missing::keep_identity && p.init == Init::identity;
}

// [rows, columns] -> [columns, rows], in tiles.
void transpose(const float* in, std::int64_t rows, std::int64_t columns, float* out) {
  constexpr std::int64_t kTile = 32;
#pragma omp parallel for schedule(static)
  for (std::int64_t r0 = 0; r0 < rows; r0 += kTile)
    for (std::int64_t c0 = 0; c0 < columns; c0 += kTile)
      for (std::int64_t r = r0; r < std::min(rows, r0 + kTile); ++r)
        for (std::int64_t c = c0; c < std::min(columns, c0 + kTile); ++c) out[c * rows + r] = in[r * columns + c];
}

// A head that was saved beside the embedding it is tied to must be that embedding.
void check_tied_head(const ParameterList& list, const SafetensorsSet& set, const std::string& where) {
  for (const Parameter& p : list.all())
    for (const HfView& view : p.hf)
      if (view.name == "lm_head.weight") return;
  const SafetensorsSet::Entry* head = set.find("lm_head.weight");
  const SafetensorsSet::Entry* embedding = find_view(set, list.all().front().hf.front()).entry;
  if (!head || !embedding) return;
  const auto a = head->bytes(), b = embedding->bytes();
  require(a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0,
          "{}: 'lm_head.weight' is not the token embedding, but the configuration ties the two", where);
}

std::int64_t columns_of(const Parameter& p) {
  return p.shape.size() == 1 ? 1 : p.shape[1];
}

}  // namespace

void check_tensors(const ParameterList& list, const SafetensorsSet& set, const std::string& where, Missing missing) {
  std::set<std::string> used;
  for (const Parameter& p : list.all()) {
    require(!p.hf.empty(), "internal error: the parameter '{}' has no Hugging Face name", p.name);
    for (const HfView& view : p.hf) {
      const auto [name, entry] = find_view(set, view);
      if (!entry && may_lack(p, missing)) continue;
      require(entry != nullptr, "{}: the tensor '{}' is missing", where, view.name);
      require(entry->tensor->shape == shape_of(p, view), "{}: the tensor '{}' has shape [{}], the model's has [{}]",
              where, name, fmt::join(entry->tensor->shape, ", "), fmt::join(shape_of(p, view), ", "));
      require(is_weight_dtype(entry->tensor->dtype), "{}: the tensor '{}' is {}; F32, BF16 and F16 are read", where,
              name, entry->tensor->dtype);
      used.insert(name);
    }
  }
  check_tied_head(list, set, where);
  for (const auto& [name, entry] : set.tensors())
    require(used.contains(name) || may_be_there(name), "{}: has a tensor '{}', which this architecture does not have",
            where, name);
}

bool read_parameter(const SafetensorsSet& set, const Parameter& p, std::vector<float>& out) {
  if (!find_view(set, p.hf.front()).entry) return false;
  const std::int64_t columns = columns_of(p);
  out.assign(static_cast<std::size_t>(p.numel()), 0.0f);
  std::vector<float> part;
  for (const HfView& view : p.hf) {
    const SafetensorsSet::Entry& entry = *find_view(set, view).entry;
    float* rows = out.data() + view.row_begin * columns;
    const auto count = static_cast<std::size_t>(view.row_count * columns);
    if (!view.transpose) {
      decode_elements(entry.tensor->dtype, entry.bytes(), {rows, count});
      continue;
    }
    part.resize(count);
    decode_elements(entry.tensor->dtype, entry.bytes(), part);
    transpose(part.data(), columns, view.row_count, rows);
  }
  return true;
}

void export_parameters(const ParameterList& list,
                       const std::function<void(const Parameter&, std::vector<float>& out)>& values,
                       const std::string& folder, const ExportOptions& options) {
  // Which shard takes which tensors, in the order of the list.
  std::vector<std::vector<SafetensorsWriter::Planned>> shards(1);
  std::uint64_t filled = 0, total = 0;
  for (const Parameter& p : list.all())
    for (const HfView& view : p.hf) {
      SafetensorsWriter::Planned planned{view.name, options.dtype, shape_of(p, view)};
      if (!shards.back().empty() && filled + planned.bytes() > options.shard_bytes) {
        shards.emplace_back();
        filled = 0;
      }
      filled += planned.bytes();
      total += planned.bytes();
      shards.back().push_back(std::move(planned));
    }
  const auto file_name = [&](std::size_t n) {
    return shards.size() == 1 ? std::string("model.safetensors")
                              : fmt::format("model-{:05}-of-{:05}.safetensors", n + 1, shards.size());
  };
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  for (std::size_t n = 0; n < shards.size(); ++n)
    for (const auto& planned : shards[n]) map[planned.name] = file_name(n);

  std::unique_ptr<SafetensorsWriter> writer;
  std::size_t shard = 0, in_shard = 0;
  std::vector<float> host, part;
  std::vector<std::byte> encoded;
  for (const Parameter& p : list.all()) {
    const std::int64_t columns = columns_of(p);
    host.resize(static_cast<std::size_t>(p.numel()));
    values(p, host);
    for (const HfView& view : p.hf) {
      if (!writer)
        writer = std::make_unique<SafetensorsWriter>(folder + "/" + file_name(shard), shards[shard],
                                                     std::map<std::string, std::string>{{"format", "pt"}});
      const float* rows = host.data() + view.row_begin * columns;
      std::span<const float> elements{rows, static_cast<std::size_t>(view.row_count * columns)};
      if (view.transpose) {
        part.resize(elements.size());
        transpose(rows, view.row_count, columns, part.data());
        elements = part;
      }
      encode_elements(options.dtype, elements, encoded, view.name);
      writer->add(view.name, encoded);
      if (++in_shard < shards[shard].size()) continue;
      writer->finish();
      writer.reset();
      ++shard;
      in_shard = 0;
    }
  }
  if (shards.size() > 1) {
    const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
    write_whole_file(folder + "/model.safetensors.index.json", index.dump(2) + "\n", false);
  }
}

}  // namespace sfa::hf
