#include "data/token_file.h"

#include <hdf5.h>

#include <numeric>
#include <random>
#include <thread>

#include "core/hdf5.h"
#include "data/data_test.h"

// HDF5 itself loses memory when it gives up on a damaged file; only what it loses is passed over.
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5";
}

namespace sfa {
namespace {

using TokenFileTest = DataTest;

std::vector<std::int32_t> read_all(const TokenFile& file) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(file.info().total_tokens));
  file.read(0, ids);
  return ids;
}

TEST_F(TokenFileTest, RoundTripOfTokensAndProvenance) {
  const auto tokenizer = load_tokenizer("bytes");
  TokenWriter writer({path("a.h5"), 0.25, false}, *tokenizer);
  std::vector<std::int32_t> expected;
  std::mt19937 random(1);
  for (int document = 0; document < 50; ++document) {
    writer.begin_document();
    expected.push_back(256);
    std::vector<std::uint32_t> ids(random() % 40000);
    for (auto& id : ids) expected.push_back(static_cast<std::int32_t>(id = random() % 256));
    writer.append(ids);
  }
  writer.finish({"one.txt", "zwei \xc3\xa4.txt"}, "abc");

  const TokenFile file(path("a.h5"));
  const TokenFileInfo& info = file.info();
  EXPECT_EQ(info.tokenizer_name, "bytes");
  EXPECT_EQ(info.tokenizer_hash, tokenizer->hash());
  EXPECT_EQ(info.vocab_size, 257);
  EXPECT_EQ(info.end_of_text, 256);
  EXPECT_EQ(info.source_names, (std::vector<std::string>{"one.txt", "zwei \xc3\xa4.txt"}));
  EXPECT_EQ(info.source_hash, "abc");
  EXPECT_EQ(info.num_documents, 50);
  EXPECT_EQ(info.total_tokens, static_cast<std::int64_t>(expected.size()));
  EXPECT_GT(expected.size() * 2, std::size_t{1} << 20) << "the test is to span several checksum blocks";
  EXPECT_EQ(read_all(file), expected);

  const auto starts = file.document_starts();
  ASSERT_EQ(starts.size(), 50u);
  for (const auto start : starts) EXPECT_EQ(expected[static_cast<std::size_t>(start)], 256);
  const TokenFile::Vocabulary vocabulary = file.vocabulary();
  EXPECT_EQ(vocabulary['A'], "A");
  EXPECT_EQ(vocabulary[256], "<|endoftext|>");
  EXPECT_NO_THROW(file.verify());

  const auto [train_begin, train_end] = file.range(Split::train);
  const auto [val_begin, val_end] = file.range(Split::val);
  EXPECT_EQ(train_begin, 0);
  EXPECT_EQ(train_end, val_begin);
  EXPECT_EQ(val_end, info.total_tokens);
  EXPECT_NEAR(static_cast<double>(val_end - val_begin), 0.25 * static_cast<double>(info.total_tokens),
              0.05 * 0.25 * static_cast<double>(info.total_tokens) + 1);
}

TEST_F(TokenFileTest, RandomRangesFromManyThreads) {
  const std::string name = write_shard("a.h5", {400000, 700000, 3});
  const TokenFile file(name);
  const auto expected = read_all(TokenFile(name));
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 200; ++i) {
        const std::int64_t begin = random() % expected.size();
        std::vector<std::int32_t> ids(
            std::min<std::size_t>(random() % 5000, expected.size() - static_cast<std::size_t>(begin)));
        file.read(begin, ids);
        ASSERT_TRUE(std::equal(ids.begin(), ids.end(), expected.begin() + begin));
      }
    });
  for (auto& thread : threads) thread.join();
}

TEST_F(TokenFileTest, EqualContentMakesEqualFiles) {
  write_shard("a.h5", {100, 200}, 0.1);
  ::usleep(1100000);  // HDF5 would record times in seconds
  write_shard("b.h5", {100, 200}, 0.1);
  EXPECT_EQ(read_file(path("a.h5")), read_file(path("b.h5")));
}

TEST_F(TokenFileTest, MissingEmptyAndForeignFilesAreNamed) {
  expect_parts(error_of([&] { TokenFile file(path("no.h5")); }), {path("no.h5"), "does not exist"});
  expect_parts(error_of([&] { TokenFile file(folder_); }), {folder_, "folder"});
  write_file("empty.h5", "");
  expect_parts(error_of([&] { TokenFile file(path("empty.h5")); }), {path("empty.h5"), "is empty"});
  write_file("text.h5", "First Citizen: Before we proceed any further");
  expect_parts(error_of([&] { TokenFile file(path("text.h5")); }),
               {path("text.h5"), "not an HDF5 file", "sfa data tokenize"});
  write_file("short.h5", "abc");
  expect_parts(error_of([&] { TokenFile file(path("short.h5")); }), {path("short.h5"), "not an HDF5 file"});
  {
    hdf5::Lock lock;
    hdf5::create_file(path("other.h5"));
  }
  expect_parts(error_of([&] { TokenFile file(path("other.h5")); }), {path("other.h5"), "not a token file", "format"});
}

TEST_F(TokenFileTest, AnotherFormatVersionIsNamed) {
  write_shard("a.h5", {100});
  {
    hdf5::Lock lock;
    hdf5::Handle file(H5Fopen(path("a.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
    H5Adelete(file.get(), "format_version");
    hdf5::write_attribute(file.get(), "format_version", std::int64_t{7});
  }
  expect_parts(error_of([&] { TokenFile file(path("a.h5")); }), {path("a.h5"), "version 7", "version 1"});
}

TEST_F(TokenFileTest, AChangedAttributeIsFound) {
  write_shard("a.h5", {100}, 0.5);
  {
    hdf5::Lock lock;
    hdf5::Handle file(H5Fopen(path("a.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
    H5Adelete(file.get(), "val_start");
    hdf5::write_attribute(file.get(), "val_start", std::int64_t{3});
  }
  expect_parts(error_of([&] { TokenFile file(path("a.h5")); }), {path("a.h5"), "damaged", "checksum"});
}

TEST_F(TokenFileTest, AChunkedTokenArrayIsRefused) {
  write_shard("a.h5", {100});
  {
    hdf5::Lock lock;
    hdf5::Handle file(H5Fopen(path("a.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
    H5Ldelete(file.get(), "/tokens", H5P_DEFAULT);
    const hsize_t dims[1] = {100}, chunk[1] = {10};
    hdf5::Handle space(H5Screate_simple(1, dims, nullptr), H5Sclose);
    hdf5::Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_chunk(properties.get(), 1, chunk);
    hdf5::Handle tokens(
        H5Dcreate2(file.get(), "/tokens", H5T_STD_U16LE, space.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
        H5Dclose);
    const std::vector<std::uint16_t> zeros(100);
    H5Dwrite(tokens.get(), H5T_NATIVE_UINT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, zeros.data());
  }
  expect_parts(error_of([&] { TokenFile file(path("a.h5")); }), {path("a.h5"), "/tokens", "not contiguous"});
}

TEST_F(TokenFileTest, TruncationAnywhereIsFoundWhenTheFileIsOpened) {
  write_shard("a.h5", {5000, 20});
  const std::string whole = read_file(path("a.h5"));
  for (std::size_t length = 1; length < whole.size(); length += 97) {
    write_file("cut.h5", whole.substr(0, length));
    expect_parts(error_of([&] { TokenFile file(path("cut.h5")); }), {path("cut.h5")});
  }
  write_file("cut.h5", whole.substr(0, whole.size() - 1));
  expect_parts(error_of([&] { TokenFile file(path("cut.h5")); }), {path("cut.h5"), "truncated"});
}

// One bit of every third byte of the file (fields are wider than that): either the damage is reported, or nothing that
// is read differs (unused bytes).
TEST_F(TokenFileTest, AFlippedBitIsFoundWhereverItMatters) {
  write_shard("a.h5", {700, 20}, 0.1);
  const TokenFile original(path("a.h5"));
  const auto tokens = read_all(original);
  std::string bytes = read_file(path("a.h5"));
  std::size_t found = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const char saved = bytes[i];
    bytes[i] = static_cast<char>(bytes[i] ^ (1 << (i % 8)));
    write_file("flip.h5", bytes);
    bytes[i] = saved;
    try {
      const TokenFile file(path("flip.h5"));
      file.verify();
      ASSERT_EQ(read_all(file), tokens) << "byte " << i;
      ASSERT_EQ(file.info().val_start, original.info().val_start) << "byte " << i;
      ASSERT_EQ(file.info().source_names, original.info().source_names) << "byte " << i;
    } catch (const Error& error) {
      ++found;
      expect_parts(error.what(), {path("flip.h5")});
    }
  }
  EXPECT_GT(found, bytes.size() / 6);
}

TEST_F(TokenFileTest, ADamagedBlockIsNamedWhenItIsTouchedAndNotBefore) {
  write_shard("a.h5", {1200000});  // 2.4 MB: three blocks
  std::string bytes = read_file(path("a.h5"));
  bytes[bytes.size() - 1200000] = static_cast<char>(bytes[bytes.size() - 1200000] ^ 4);  // in the middle of the tokens
  write_file("a.h5", bytes);
  const TokenFile file(path("a.h5"));
  std::vector<std::int32_t> ids(100);
  EXPECT_NO_THROW(file.read(0, ids));
  EXPECT_NO_THROW(file.read(1199900, ids));
  expect_parts(error_of([&] { file.read(600000, ids); }), {path("a.h5"), "block 1 of 3", "checksum"});
  expect_parts(error_of([&] { file.verify(); }), {"block 1 of 3"});
}

TEST_F(TokenFileTest, AnIdOutsideTheVocabularyIsRefused) {
  const auto tokenizer = load_tokenizer("bytes");
  TokenWriter writer({path("a.h5"), 0.0, false}, *tokenizer);
  const std::vector<std::uint32_t> ids{1, 2, 300};
  writer.append(ids);
  writer.finish({}, "");
  const TokenFile file(path("a.h5"));
  std::vector<std::int32_t> out(3);
  expect_parts(error_of([&] { file.read(0, out); }), {path("a.h5"), "300", "257"});
}

TEST_F(TokenFileTest, TheWriterRefusesToReplaceAndLeavesNothingBehindWhenItFails) {
  write_shard("a.h5", {100});
  const std::string before = read_file(path("a.h5"));
  const auto tokenizer = load_tokenizer("bytes");
  expect_parts(error_of([&] {
                 TokenWriter writer({path("a.h5"), 0.0, false}, *tokenizer);
               }),
               {path("a.h5"), "--force"});
  expect_parts(error_of([&] { TokenWriter writer({path("b.h5"), 1.0, false}, *tokenizer); }), {"fraction", "1"});
  expect_parts(error_of([&] {
                 TokenWriter writer({path("b.h5"), 0.0, false}, *tokenizer);
                 writer.finish({}, "");
               }),
               {path("b.h5"), "no text"});
  {
    TokenWriter writer({path("a.h5"), 0.0, true}, *tokenizer);
    writer.begin_document();  // and never finished
  }
  {  // a file that appeared while the writer was at work
    TokenWriter writer({path("c.h5"), 0.0, false}, *tokenizer);
    writer.begin_document();
    write_file("c.h5", "mine");
    expect_parts(error_of([&] { writer.finish({}, ""); }), {path("c.h5"), "exists already"});
    EXPECT_EQ(read_file(path("c.h5")), "mine");
  }
  EXPECT_EQ(read_file(path("a.h5")), before);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 2);
}

TEST_F(TokenFileTest, AValidationPartMustBeThereWhenItIsAskedFor) {
  write_shard("a.h5", {100});
  const TokenFile file(path("a.h5"));
  expect_parts(error_of([&] { (void)file.range(Split::val); }), {path("a.h5"), "--val-fraction", "data.val"});
}

TEST(ValidationStart, IsTheTailAndPrefersANearDocumentStart) {
  EXPECT_EQ(validation_start(1000, 0.0, {}), 1000);
  EXPECT_EQ(validation_start(1000, 0.1, {}), 900);
  const std::vector<std::int64_t> near{0, 400, 897, 960}, far{0, 400, 880, 960}, two{0, 898, 901};
  EXPECT_EQ(validation_start(1000, 0.1, near), 897);
  EXPECT_EQ(validation_start(1000, 0.1, far), 900);
  EXPECT_EQ(validation_start(1000, 0.1, two), 901);
  EXPECT_EQ(validation_start(1, 0.999, std::vector<std::int64_t>{0}), 1);
}

}  // namespace
}  // namespace sfa
