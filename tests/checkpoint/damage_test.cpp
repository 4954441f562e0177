// Whatever happens to the files of a checkpoint, reading it gives the right bits or one sentence.
#include <sys/stat.h>
#include <xxhash.h>

#include "checkpoint/helpers.h"
#include "checkpoint/manifest.h"

namespace sfa::test {
namespace {
using nlohmann::json;

struct Damage : ::testing::Test {
  TempFolder run;
  fs::path folder = save(run.path(), 6, 60);
  fs::path manifest = folder / "manifest.json";
  fs::path data = folder / "rank_00000.h5";

  // The manifest with its body changed and signed again.
  void rewrite(const std::function<void(json&)>& change) const {
    const std::string text = read_file(manifest);
    json body = json::parse("{" + text.substr(text.find('\n') + 1));
    change(body);
    sign(body.dump().substr(1));
  }
  void sign(const std::string& rest, const std::string& version = "1") const {
    write_file(manifest, fmt::format("{{\"format\":\"sfa-checkpoint\",\"version\":{},\"xxh3\":\"{:016x}\",\n{}",
                                     version, XXH3_64bits(rest.data(), rest.size()), rest));
  }
  void expect_refused(const std::string& part) const { EXPECT_ERROR(CheckpointReader reader(folder), part); }
};

TEST_F(Damage, EveryFlippedByteOfTheDataFile) {
  const std::string good = read_file(data);
  int right = 0;
  for (std::size_t at = 0; at < good.size(); at += 5) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
    write_file(data, bad);
    CheckpointReader reader(folder);  // the size is right
    EXPECT_ERROR(reader.verify(), "is damaged");
    const std::string sentence = error_of([&] { EXPECT_TRUE(holds(reader, 6, 60)) << "wrong data, byte " << at; });
    if (sentence.empty()) ++right;  // one of HDF5's own bytes, or padding
  }
  EXPECT_GT(right, 0);
}

TEST_F(Damage, EveryFlippedByteOfTheManifest) {
  const std::string good = read_file(manifest);
  int wrong = 0;
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
    write_file(manifest, bad);
    const std::string sentence = error_of([&] {
      CheckpointReader reader(folder);
      EXPECT_TRUE(holds(reader, 6, 60)) << "wrong data, byte " << at;
    });
    wrong += sentence.empty() ? 0 : 1;
  }
  EXPECT_GT(wrong, static_cast<int>(good.size()) - 20)
      << "only the letter case of the checksum itself may change unseen";
}

TEST_F(Damage, EveryTruncation) {
  for (const fs::path& path : {data, manifest}) {
    const std::string good = read_file(path);
    for (std::size_t bytes = 0; bytes < good.size(); bytes += 23) {
      write_file(path, good.substr(0, bytes));
      EXPECT_ERROR(CheckpointReader reader(folder), path.filename().string());
    }
    write_file(path, good + "x");
    EXPECT_ERROR(CheckpointReader reader(folder), path.filename().string());
    write_file(path, good);
  }
  CheckpointReader(folder).verify();
}

// A truncation after opening, as by a broken network disk.
TEST_F(Damage, TruncatedWhileOpen) {
  CheckpointReader reader(folder);
  fs::resize_file(data, 3000);
  EXPECT_ERROR(holds(reader, 6, 60), "is truncated");
}

TEST_F(Damage, MissingUnfinishedAndOtherThings) {
  EXPECT_ERROR(CheckpointReader(run.path() / "step_00000099"), "there is no checkpoint");
  EXPECT_ERROR(CheckpointReader reader(data), "a checkpoint is a folder");
  fs::rename(data, folder / "rank_00001.h5");
  expect_refused("rank_00000.h5 does not exist");
  fs::create_directory(data);
  expect_refused("is a folder, not a file");
  fs::remove(data);
  ASSERT_EQ(::mkfifo(data.c_str(), 0600), 0);
  expect_refused("not a regular file");
  fs::remove(data);
  fs::rename(folder / "rank_00001.h5", data);
  CheckpointReader(folder).verify();
  fs::remove(manifest);
  expect_refused("unfinished");
  for (const char* text : {"", "{}", "not JSON", "[1,2]\n", "{\"format\":\"other\",\n{}", "\n\n\n", "null,\n"}) {
    write_file(manifest, text);
    expect_refused("is not the manifest of a checkpoint");
  }
}

TEST_F(Damage, VersionsAndJson) {
  const std::string text = read_file(manifest);
  const std::string rest = text.substr(text.find('\n') + 1);
  sign(rest, "2");
  expect_refused("a newer build of sfa is needed");
  sign(rest, "0");
  expect_refused("format version 0");
  sign(rest, "-1");
  expect_refused("'version' is negative");
  sign(rest, "1.0");
  expect_refused("'version' is not a 64-bit integer");
  sign(rest, "\"1\"");
  expect_refused("'version' is not a 64-bit integer");
  sign(rest.substr(0, rest.size() / 2));
  expect_refused("is not valid JSON");
  sign("\"a\":" + std::string(100'000, '['));
  expect_refused("nested deeper");
  sign("\"a\":\"\xFF\"}");
  expect_refused("is not valid JSON");
  sign("\"step\":1e400}");
  expect_refused("a number that is out of range");
  sign("}");
  expect_refused("'step' is missing");
  sign(rest);
  CheckpointReader(folder).verify();
}

TEST_F(Damage, HostileValues) {
  const std::string good = read_file(manifest);
  const std::string name = "param/h.0.attn.qkv.weight";
  const auto hostile = [&](const char* part,
                           const std::function<void(json & body, json & tensor, json & piece)>& change) {
    rewrite([&](json& body) { change(body, body["tensors"][name], body["tensors"][name]["pieces"][0]); });
    expect_refused(part);
    write_file(manifest, good);
  };
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  hostile("'step' is negative", [](json& b, json&, json&) { b["step"] = -1; });
  hostile("'step' is not a 64-bit",
          [](json& b, json&, json&) { b["step"] = std::numeric_limits<std::uint64_t>::max(); });
  hostile("'step' is not a 64-bit", [](json& b, json&, json&) { b["step"] = "1"; });
  hostile("'block_bytes'", [](json& b, json&, json&) { b["block_bytes"] = 0; });
  hostile("'block_bytes'", [=](json& b, json&, json&) { b["block_bytes"] = huge; });
  hostile("'state' is not an object", [](json& b, json&, json&) { b["state"] = {1, 2}; });
  hostile("'config' is not a string", [](json& b, json&, json&) { b["config"] = 1; });
  hostile("'tensors' is not an object", [](json& b, json&, json&) { b["tensors"] = {1}; });
  hostile("'files' is not an object", [](json& b, json&, json&) { b["files"] = nullptr; });
  for (const char* file :
       {"../rank_00000.h5", "/etc/passwd", "rank_00000.h5/..", "rank_0000a.h5", "rank_000000.h5", ".."})
    hostile("not called rank_NNNNN.h5", [=](json& b, json&, json&) { b["files"][file] = b["files"]["rank_00000.h5"]; });
  hostile("'bytes' is negative", [](json& b, json&, json&) { b["files"]["rank_00000.h5"]["bytes"] = -5; });
  hostile("impossible", [=](json& b, json&, json&) { b["files"]["rank_00000.h5"]["bytes"] = huge; });
  hostile("truncated", [=](json& b, json&, json&) { b["files"]["rank_00000.h5"]["bytes"] = huge / 4; });
  hostile("not a checksum", [](json& b, json&, json&) { b["files"]["rank_00000.h5"]["structure_xxh3"] = "12"; });
  hostile("which is not listed", [](json&, json&, json& p) { p["file"] = "rank_00001.h5"; });
  hostile("which is not listed", [](json&, json&, json& p) { p["file"] = "../x"; });
  hostile("unknown dtype", [](json&, json& t, json&) { t["dtype"] = "f64"; });
  hostile("'shape' is not a list", [](json&, json& t, json&) { t["shape"] = 180; });
  hostile("'shape' is negative", [](json&, json& t, json&) { t["shape"] = {-60, -3}; });
  hostile("'shape' is not a 64-bit", [](json&, json& t, json&) { t["shape"] = {60.0, 3}; });
  hostile("shape is impossible", [=](json&, json& t, json&) { t["shape"] = {huge, huge}; });
  hostile("shape is impossible", [](json&, json& t, json&) { t["shape"] = {1ll << 32, 1ll << 32, 180}; });
  hostile("shape is impossible", [](json&, json& t, json&) { t["shape"] = std::vector<int>(17, 1); });
  hostile("[180, 360) are in no piece", [](json&, json& t, json&) { t["shape"] = {120, 3}; });
  hostile("goes on past its 90", [](json&, json& t, json&) { t["shape"] = {30, 3}; });
  hostile("are in no piece", [](json&, json& t, json&) { t["pieces"] = json::array(); });
  hostile("two pieces hold element", [](json&, json& t, json& p) { t["pieces"] = {p, p}; });
  hostile("'pieces' is not a list", [](json&, json& t, json&) { t["pieces"] = "all"; });
  hostile("'file' is missing", [](json&, json& t, json&) { t["pieces"] = {1}; });
  hostile("a piece is empty", [](json&, json&, json& p) { p["count"] = 0; });
  hostile("'count' is negative", [](json&, json&, json& p) { p["count"] = -180; });
  hostile("goes on past", [=](json&, json&, json& p) { p["count"] = huge; });
  hostile("[0, 10) are in no piece", [](json&, json&, json& p) { p["begin"] = 10; });
  hostile("[0, 9223372036854775807) are in no", [=](json&, json&, json& p) { p["begin"] = huge; });
  hostile("outside of rank_00000.h5", [=](json&, json&, json& p) { p["offset"] = huge; });
  hostile("outside of rank_00000.h5",
          [](json& b, json&, json& p) { p["offset"] = b["files"]["rank_00000.h5"]["bytes"]; });
  hostile("'offset' is negative", [](json&, json&, json& p) { p["offset"] = -1; });
  hostile("share bytes", [](json& b, json&, json& p) { p["offset"] = b["tensors"]["bytes"]["pieces"][0]["offset"]; });
  hostile("0 checksums, 1 were expected", [](json&, json&, json& p) { p["xxh3"] = json::array(); });
  hostile("not a checksum", [](json&, json&, json& p) { p["xxh3"] = {"000000000000000g"}; });
  hostile("not a checksum", [](json&, json&, json& p) { p["xxh3"] = {7}; });
  for (const char* bad : {"", "a//b", "../a", "a\nb"})
    hostile("is no name for a tensor", [=](json& b, json& t, json&) { b["tensors"][bad] = t; });
  CheckpointReader(folder).verify();
}

// Offsets that stay inside the file but point elsewhere: the checksums see it.
TEST_F(Damage, SwappedPieces) {
  rewrite([](json& body) {
    json& tensors = body["tensors"];
    std::swap(tensors["param/h.0.attn.qkv.weight"]["pieces"][0]["offset"],
              tensors["adam_m/h.0.attn.qkv.weight"]["pieces"][0]["offset"]);
  });
  CheckpointReader reader(folder);
  std::vector<float> out(180);
  EXPECT_ERROR(reader.read("param/h.0.attn.qkv.weight", 0, 180, out.data()), "do not match their checksum");
  EXPECT_ERROR(reader.verify(), "do not match their checksum");
}

TEST_F(Damage, WrongQuestions) {
  CheckpointReader reader(folder);
  float out[4];
  EXPECT_ERROR(reader.read("param/none", 0, 1, out), "holds no tensor 'param/none'");
  EXPECT_ERROR(reader.read("compute/ln.weight", 59, 2, out), "holds 60");
  EXPECT_ERROR(reader.read("compute/ln.weight", -1, 2, out), "holds 60");
  EXPECT_ERROR(reader.read("compute/ln.weight", std::numeric_limits<std::int64_t>::max(), 2, out), "holds 60");
  EXPECT_ERROR(reader.expect({"param/none", DType::f32, {60}}), "holds no tensor 'param/none'");
  EXPECT_ERROR(reader.expect({"compute/ln.weight", DType::f32, {60}}), "is [60] bf16 in checkpoint");
  EXPECT_ERROR(reader.expect({"compute/ln.weight", DType::bf16, {60, 1}}), "but [60, 1] bf16 in this model");
  reader.expect({"compute/ln.weight", DType::bf16, {60}});
}

}  // namespace
}  // namespace sfa::test
