// llm.c's .bin shards, written here as its data scripts write them.
#include <cstring>

#include "data/data_test.h"
#include "data/loader.h"

namespace sfa {
namespace {

class LlmcTest : public DataTest {
 protected:
  template <class T>
  std::string write_bin(const std::string& name, std::int32_t magic, std::int32_t version,
                        const std::vector<T>& ids) const {
    std::vector<std::int32_t> header(256);
    header[0] = magic;
    header[1] = version;
    header[2] = static_cast<std::int32_t>(ids.size());
    std::string bytes(reinterpret_cast<const char*>(header.data()), 1024);
    bytes.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(T));
    return write_file(name, bytes);
  }
  // Documents of 100 tokens, each opened by end of text.
  template <class T>
  static std::vector<T> documents(int count, T end_of_text) {
    std::vector<T> ids;
    for (int i = 0; i < count * 100; ++i) ids.push_back(i % 100 == 0 ? end_of_text : static_cast<T>(i));
    return ids;
  }
};

TEST_F(LlmcTest, BothKindsAreRead) {
  const auto short_ids = documents<std::uint16_t>(300, 50256);
  const auto long_ids = documents<std::uint32_t>(1000, 151643);
  const TokenFile a(write_bin("a.bin", 20240520, 1, short_ids)), b(write_bin("b.bin", 20240801, 7, long_ids));
  EXPECT_EQ(a.info().vocab_size, 50257);
  EXPECT_EQ(a.info().end_of_text, 50256);
  EXPECT_EQ(b.info().vocab_size, 151936);
  EXPECT_EQ(b.info().token_bytes, 4);
  EXPECT_EQ(b.info().total_tokens, 100000);
  std::vector<std::int32_t> ids(500);
  a.read(29500, ids);
  EXPECT_TRUE(std::equal(ids.begin(), ids.end(), short_ids.begin() + 29500));
  b.read(99500, ids);
  EXPECT_TRUE(std::equal(ids.begin(), ids.end(), long_ids.begin() + 99500));
  const auto starts = b.document_starts();
  ASSERT_EQ(starts.size(), 1000u);
  for (std::size_t i = 0; i < starts.size(); ++i) EXPECT_EQ(starts[i], static_cast<std::int64_t>(100 * i));
  EXPECT_NO_THROW(b.verify());
  EXPECT_TRUE(a.vocabulary().empty());
}

TEST_F(LlmcTest, TrainingAndValidationAreFilesOfTheirOwn) {
  write_bin("fineweb_train_0.bin", 20240520, 1, documents<std::uint16_t>(50, 50256));
  write_bin("fineweb_train_1.bin", 20240520, 1, documents<std::uint16_t>(80, 50256));
  const std::string val = write_bin("fineweb_val_0.bin", 20240520, 1, documents<std::uint16_t>(5, 50256));
  LoaderOptions o;
  o.paths = {path("fineweb_train_*.bin")};
  o.seq_len = 64;
  o.batch_size = o.micro_batch_size = 4;
  o.document_mask = true;
  Loader loader(o);
  EXPECT_EQ(loader.shards().files().size(), 2u);
  const Batch& batch = loader.next();
  for (std::size_t i = 0; i + 1 < 64; ++i) EXPECT_EQ(batch.tokens[i + 1], batch.targets[i]);
  EXPECT_EQ(validation_split_of_own_files(ShardSet({val})), Split::all);
  ValidationOptions v;
  v.paths = {val};
  v.split = Split::all;
  v.seq_len = 64;
  v.batch_size = 2;
  ValidationSet set(v);
  EXPECT_EQ(set.total_targets(), 499);
  EXPECT_EQ(set.batch(0).target_bytes, 0) << "the file does not say what its tokens stand for";
}

TEST_F(LlmcTest, DamageIsNamed) {
  const auto ids = documents<std::uint16_t>(3, 50256);
  const std::string good = read_file(write_bin("a.bin", 20240520, 1, ids));
  const auto message = [&](const std::string& bytes) {
    return error_of([&] {
      const TokenFile file(write_file("b.bin", bytes));
      file.verify();
    });
  };
  for (const std::size_t length : {12, 1000, 1024, 1025, 1200, 1623})
    expect_parts(message(good.substr(0, length)), {"b.bin", "truncated"});
  expect_parts(message(good + "x"), {"b.bin", "300 tokens", "1625"});
  std::string other = good;
  other[4] = 2;
  expect_parts(message(other), {"b.bin", "version 2", "version 1"});
  other = good;
  std::memset(other.data() + 8, 0xff, 4);
  expect_parts(message(other), {"b.bin", "no tokens"});
  other = good;
  std::memset(other.data() + 1100, 0xff, 2);  // 65535 is no id of GPT-2
  expect_parts(message(other), {"b.bin", "65535", "50257"});
  expect_parts(message("short"), {"b.bin", "not an HDF5 file"});
}

}  // namespace
}  // namespace sfa
