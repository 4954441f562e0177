// What is written is what is read: any ranges, any number of writers, any dtype; and HDF5 itself finds the same data in
// the files.
#include <hdf5.h>

#include <csignal>
#include <cstring>
#include <limits>
#include <random>

#include "checkpoint/helpers.h"
#include "core/hdf5.h"

namespace sfa::test {
namespace {

TEST(Checkpoint, RoundTrip) {
  const TempFolder run;
  const fs::path folder = save(run.path() / "deep" / "run", 1000);
  EXPECT_EQ(folder.filename(), "step_00001000");
  CheckpointReader reader(folder);
  EXPECT_EQ(reader.step(), 1000);
  EXPECT_EQ(reader.tensors().size(), 6u);
  EXPECT_EQ(reader.tensors().at("nothing").shape, (std::vector<std::int64_t>{0, 7}));
  EXPECT_TRUE(holds(reader, 1000));
  EXPECT_FALSE(holds(reader, 1001)) << "the comparison itself must be able to fail";
  reader.verify();
  EXPECT_GT(reader.bytes(), 3600);
  EXPECT_TRUE(leftovers(folder.parent_path()).empty());
}

// Pieces of several blocks (4 MiB), cut at odd places by three ranks that start in any order, read by ranges that are
// cut elsewhere.
TEST(Checkpoint, SeveralWritersOtherRangesAtReading) {
  const TempFolder run;
  const std::int64_t width = 1'200'007;
  const std::vector<Sample> all = samples(7, width);
  std::vector<nlohmann::json> lists;
  fs::path folder;
  {
    CheckpointWriter second(run.path(), 7, 1), first(run.path(), 7, 0), third(run.path(), 7, 2);
    CheckpointWriter* writers[3] = {&first, &second, &third};
    for (const Sample& sample : all) {
      const std::int64_t n = sample.tensor.numel();
      const std::int64_t cuts[4] = {0, n / 3 + 1 > n ? n : n / 3 + 1, n / 2 + 1 > n ? n : n / 2 + 1, n};
      for (int rank = 0; rank < 3; ++rank)
        writers[rank]->add(sample.tensor, cuts[rank], cuts[rank + 1] - cuts[rank], sample.at(cuts[rank]));
    }
    for (CheckpointWriter* writer : {&third, &second, &first}) lists.push_back(writer->finish_file());
    folder = first.publish(lists, state_of(7), "seed: 1\n");
  }
  CheckpointReader reader(folder);
  EXPECT_TRUE(holds(reader, 7, width));
  reader.verify();
  std::mt19937_64 random(1);
  for (int i = 0; i < 300; ++i) {
    CheckpointReader fresh(folder);
    CheckpointReader& used = i % 2 == 0 ? fresh : reader;  // blocks checked before, and not
    const Sample& sample = all[random() % all.size()];
    const auto n = static_cast<std::uint64_t>(sample.tensor.numel());
    const std::uint64_t begin = random() % (n + 1);
    std::uint64_t count = random() % (n - begin + 1);
    if (i % 3 == 0) count = std::min<std::uint64_t>(count, 100);
    const std::size_t bytes = count * size_of(sample.tensor.dtype);
    std::vector<unsigned char> out(bytes + 8, 0xEE);
    used.read(sample.tensor.name, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(count), out.data());
    EXPECT_TRUE(bytes == 0 || std::memcmp(out.data(), sample.at(static_cast<std::int64_t>(begin)), bytes) == 0);
    EXPECT_TRUE(std::all_of(out.begin() + static_cast<std::ptrdiff_t>(bytes), out.end(),
                            [](unsigned char c) { return c == 0xEE; }));
  }
}

// Ranks are processes: four write side by side, one dies on the way, and the next attempt of all four succeeds.
TEST(Checkpoint, ProcessesWriteSideBySide) {
  const TempFolder run;
  const std::int64_t width = 20'011;
  const std::vector<Sample> all = samples(9, width);
  const auto list_path = [&](int rank) { return run.path() / fmt::format("list_{}.json", rank); };
  const auto write_rank = [&](CheckpointWriter& writer, int rank) {
    for (const Sample& sample : all) {
      const std::int64_t n = sample.tensor.numel(), begin = n * rank / 4, end = n * (rank + 1) / 4;
      writer.add(sample.tensor, begin, end - begin, sample.at(begin));
    }
    return writer.finish_file();
  };
  for (const bool dies : {true, false}) {
    std::vector<pid_t> others;
    for (int rank = 1; rank < 4; ++rank)
      others.push_back(start_child([&] {
        CheckpointWriter writer(run.path(), 9, rank);
        if (dies && rank == 2) ::kill(::getpid(), SIGKILL);
        write_file(list_path(rank), write_rank(writer, rank).dump());
      }));
    CheckpointWriter writer(run.path(), 9, 0);
    std::vector<nlohmann::json> lists{write_rank(writer, 0)};
    bool whole = true;
    for (std::size_t i = 0; i < others.size(); ++i) {
      if (wait_for(others[i]) != 0)
        whole = false;
      else
        lists.push_back(nlohmann::json::parse(read_file(list_path(static_cast<int>(i) + 1))));
    }
    EXPECT_EQ(whole, !dies);
    if (dies) {
      EXPECT_ERROR(writer.publish(lists, state_of(9), "seed: 1\n"), "are in no piece");
    } else {
      writer.publish(lists, state_of(9), "seed: 1\n");
    }
  }
  CheckpointReader reader(find_checkpoint(run.path()));
  reader.verify();
  EXPECT_TRUE(holds(reader, 9, width));
  EXPECT_TRUE(leftovers(run.path()).empty());
  EXPECT_EQ(reader.folder().filename(), "step_00000009");
}

TEST(Checkpoint, Hdf5FindsTheSameData) {
  const TempFolder run;
  const std::int64_t width = 50'001;
  const fs::path folder = save(run.path(), 3, width);
  const Sample whole = samples(3, width)[0];
  const hdf5::Lock lock;
  const hdf5::Handle file = hdf5::open_file((folder / "rank_00000.h5").string());
  const hdf5::Handle dataset(H5Dopen2(file.get(), "/param/h.0.attn.qkv.weight", H5P_DEFAULT), H5Dclose);
  ASSERT_TRUE(dataset.valid());
  const hdf5::Handle space(H5Dget_space(dataset.get()), H5Sclose);
  hsize_t dims[2] = {0, 0};
  ASSERT_EQ(H5Sget_simple_extent_dims(space.get(), dims, nullptr), 2);
  EXPECT_EQ(dims[0], static_cast<hsize_t>(width));
  EXPECT_EQ(dims[1], 3u);
  std::vector<unsigned char> out(whole.data.size());
  ASSERT_GE(H5Dread(dataset.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data()), 0);
  EXPECT_EQ(out, whole.data);
  EXPECT_EQ(hdf5::read_int(file.get(), "step"), 3);
  const hdf5::Handle scalar(H5Dopen2(file.get(), "/rng/counter", H5P_DEFAULT), H5Dclose);
  EXPECT_EQ(hdf5::read_string(scalar.get(), "dtype"), "i64");
  std::int64_t value = 0;
  ASSERT_GE(H5Dread(scalar.get(), H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, &value), 0);
  EXPECT_EQ(std::memcmp(&value, samples(3, width)[3].data.data(), 8), 0);
}

TEST(Checkpoint, Hdf5FindsParts) {
  const TempFolder run;
  const Sample sample = samples(1, 100)[0];  // [100, 3]
  fs::path folder;
  {
    CheckpointWriter writer(run.path(), 1);
    writer.add(sample.tensor, 0, 7, sample.data.data());
    writer.add(sample.tensor, 7, 293, sample.at(7));
    folder = writer.publish({writer.finish_file()}, {}, "");
  }
  const hdf5::Lock lock;
  const hdf5::Handle file = hdf5::open_file((folder / "rank_00000.h5").string());
  const hdf5::Handle part(H5Dopen2(file.get(), "/param/h.0.attn.qkv.weight@7", H5P_DEFAULT), H5Dclose);
  ASSERT_TRUE(part.valid());
  EXPECT_EQ(hdf5::read_int(part.get(), "begin"), 7);
  EXPECT_EQ(hdf5::dataset_length(part.get(), "part"), 293u);
  const hdf5::Handle shape(H5Aopen(part.get(), "shape", H5P_DEFAULT), H5Aclose);
  std::int64_t dims[2] = {0, 0};
  ASSERT_GE(H5Aread(shape.get(), H5T_NATIVE_INT64, dims), 0);
  EXPECT_EQ(dims[0], 100);
  EXPECT_EQ(dims[1], 3);
}

TEST(Checkpoint, StateComesBackBitForBit) {
  const TempFolder run;
  const nlohmann::json state = {{"loss", 0.1 + 0.2},
                                {"tiny", std::numeric_limits<double>::denorm_min()},
                                {"big", std::numeric_limits<std::uint64_t>::max()},
                                {"text", "a\n\"b\" \xC3\xA9"},
                                {"nested", {{"list", {1, 2.5, nullptr, false}}}}};
  CheckpointWriter writer(run.path(), 1);
  const fs::path folder = writer.publish({writer.finish_file()}, state, "a: \"\xE2\x82\xAC\"\n");
  const CheckpointReader reader(folder);
  EXPECT_EQ(reader.state(), state);
  EXPECT_EQ(reader.state().at("loss").get<double>(), 0.1 + 0.2);
  EXPECT_EQ(reader.config_yaml(), "a: \"\xE2\x82\xAC\"\n");
}

TEST(Checkpoint, StateThatJsonCannotHoldIsRefused) {
  const TempFolder run;
  save(run.path(), 1);
  const auto publish = [&](const nlohmann::json& state, const std::string& config) {
    CheckpointWriter writer(run.path(), 2);
    writer.publish({writer.finish_file()}, state, config);
  };
  EXPECT_ERROR(publish({{"a", {{"loss", std::numeric_limits<double>::quiet_NaN()}}}}, ""), "state/a/loss");
  EXPECT_ERROR(publish({{"a", -std::numeric_limits<double>::infinity()}}, ""), "not finite");
  EXPECT_ERROR(publish(nlohmann::json::object(), "\xFF\xFE"), "UTF-8");
  EXPECT_EQ(list_checkpoints(run.path()).size(), 1u);
  EXPECT_TRUE(leftovers(run.path()).empty());
}

TEST(Checkpoint, TheSameContentMakesTheSameBytes) {
  const TempFolder run;
  const fs::path first = save(run.path() / "a", 5), second = save(run.path() / "b", 5);
  ::usleep(1'100'000);  // HDF5 would record times in seconds
  save(run.path() / "b", 5);
  for (const char* name : {"rank_00000.h5", "manifest.json"})
    EXPECT_TRUE(read_file(first / name) == read_file(second / name)) << name;
}

TEST(Checkpoint, TheSameStepIsReplaced) {
  const TempFolder run;
  save(run.path(), 5, 100, 1);
  CheckpointReader before(run.path() / "step_00000005");
  save(run.path(), 5, 200, 2);
  CheckpointReader after(run.path() / "step_00000005");
  EXPECT_TRUE(holds(after, 2, 200));
  EXPECT_TRUE(holds(before, 1, 100)) << "a reader keeps what it has opened";
  EXPECT_TRUE(leftovers(run.path()).empty());
}

TEST(Checkpoint, WithoutPublishNothingStays) {
  const TempFolder run;
  const Sample sample = samples(1, 100)[0];
  {
    CheckpointWriter writer(run.path(), 1);
    writer.add(sample.tensor, 0, sample.tensor.numel(), sample.data.data());
  }
  EXPECT_TRUE(fs::is_empty(run.path()));
  {
    CheckpointWriter writer(run.path(), 1);
    writer.add(sample.tensor, 0, sample.tensor.numel(), sample.data.data());
    writer.finish_file();
  }
  EXPECT_TRUE(fs::is_empty(run.path()));
}

// A killed job of more ranks leaves files and even a manifest under the temporary name; the next writer of that step
// takes none of them in.
TEST(Checkpoint, StaleTemporaryFolderIsWrittenOver) {
  const TempFolder run;
  const fs::path stale = run.path() / ".step_00000004.tmp";
  fs::create_directories(stale / "folder");
  write_file(stale / "rank_00000.h5", std::string(100'000, 'x'));
  write_file(stale / "rank_00009.h5", "x");
  write_file(stale / "manifest.json", "{}");
  const fs::path folder = save(run.path(), 4);
  CheckpointReader reader(folder);
  reader.verify();
  EXPECT_TRUE(holds(reader, 4));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), 2);
}

TEST(Checkpoint, GapsOverlapsAndContradictionsAreNeverPublished) {
  const TempFolder run;
  const Sample sample = samples(1, 100)[0];  // 300 elements
  const auto publish = [&](std::int64_t end_first, std::int64_t begin_second, const CheckpointTensor& second_tensor) {
    CheckpointWriter first(run.path(), 1, 0), second(run.path(), 1, 1);
    first.add(sample.tensor, 0, end_first, sample.data.data());
    second.add(second_tensor, begin_second, 300 - begin_second, sample.at(begin_second));
    const nlohmann::json list = second.finish_file();
    first.publish({first.finish_file(), list}, {}, "");
  };
  EXPECT_ERROR(publish(100, 101, sample.tensor), "[100, 101) are in no piece");
  EXPECT_ERROR(publish(101, 100, sample.tensor), "two pieces hold element 100");
  CheckpointTensor other = sample.tensor;
  other.shape = {3, 100};
  EXPECT_ERROR(publish(100, 100, other), "disagree");
  EXPECT_TRUE(list_checkpoints(run.path()).empty());
  publish(100, 100, sample.tensor);
  EXPECT_EQ(list_checkpoints(run.path()).size(), 1u);
}

TEST(Checkpoint, WriterRefusesWhatItCannotStore) {
  const TempFolder run;
  const Sample sample = samples(1, 100)[0];
  CheckpointWriter writer(run.path(), 1);
  EXPECT_ERROR(writer.add(sample.tensor, 290, 11, sample.data.data()), "which has 300");
  EXPECT_ERROR(writer.add(sample.tensor, -1, 1, sample.data.data()), "which has 300");
  EXPECT_ERROR(writer.add(sample.tensor, 0, 1, nullptr), "without memory");
  for (const char* name : {"", "/a", "a/", "a//b", "a/../b", ".", "a b", "a@b", "a\nb"}) {
    CheckpointTensor named = sample.tensor;
    named.name = name;
    EXPECT_ERROR(writer.add(named, 0, 1, sample.data.data()), "is no name for a tensor");
  }
  CheckpointTensor within = sample.tensor;  // a tensor inside of a tensor: HDF5 has no place for it
  writer.add(sample.tensor, 0, 300, sample.data.data());
  within.name += "/bias";
  EXPECT_ERROR(writer.add(within, 0, 300, sample.data.data()), "create the group param/h.0.attn.qkv.weight");
  EXPECT_ERROR(writer.finish_file(), "broken");
  EXPECT_ERROR(CheckpointWriter(run.path(), 1), "is being written by another process");
  EXPECT_ERROR(CheckpointWriter(run.path(), -1), "step -1");
}

}  // namespace
}  // namespace sfa::test
