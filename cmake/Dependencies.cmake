# Finds what the project stands on, as imported targets behind one interface target, sfa_dependencies.
# A missing library is named together with the Debian/Ubuntu package that brings it.
add_library(sfa_dependencies INTERFACE)
find_package(PkgConfig QUIET)

function(sfa_need found name package)
  if(NOT ${found})
    message(FATAL_ERROR "${name} was not found. Install it with: apt-get install ${package}  "
                        "(scripts/test.sh and scripts/quickstart.sh install everything that is missing.)")
  endif()
endfunction()

find_package(Threads REQUIRED)
find_package(OpenMP QUIET COMPONENTS CXX)
sfa_need(OpenMP_CXX_FOUND "OpenMP" "g++")
# OpenBLAS of Debian and Ubuntu is built upon GCC's OpenMP runtime.
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang" AND NOT OpenMP_CXX_FLAGS MATCHES "libgomp")
  message(WARNING "sfa: clang's OpenMP runtime beside GCC's, upon which OpenBLAS is built, has been seen to hang training on the CPU; build with g++ (-DCMAKE_CXX_COMPILER=g++).")
endif()
find_package(spdlog QUIET)
sfa_need(spdlog_FOUND "spdlog" "libspdlog-dev")
find_package(fmt QUIET)
sfa_need(fmt_FOUND "fmt" "libfmt-dev")
find_package(yaml-cpp QUIET)
sfa_need(yaml-cpp_FOUND "yaml-cpp" "libyaml-cpp-dev")
find_package(CLI11 QUIET)
sfa_need(CLI11_FOUND "CLI11" "libcli11-dev")
find_package(nlohmann_json QUIET)
sfa_need(nlohmann_json_FOUND "nlohmann-json" "nlohmann-json3-dev")

enable_language(C) # FindHDF5 asks the C compiler wrapper
find_package(HDF5 QUIET COMPONENTS C)
sfa_need(HDF5_FOUND "HDF5 (C library)" "libhdf5-dev")

# CBLAS: OpenBLAS by preference, any library with cblas.h otherwise.
find_path(CBLAS_INCLUDE_DIR cblas.h PATH_SUFFIXES openblas x86_64-linux-gnu openblas-openmp x86_64-linux-gnu/openblas-openmp)
find_library(CBLAS_LIBRARY NAMES openblas cblas PATH_SUFFIXES openblas-openmp)
if(CBLAS_INCLUDE_DIR AND CBLAS_LIBRARY)
  set(CBLAS_FOUND TRUE)
endif()
sfa_need(CBLAS_FOUND "A BLAS with the C interface (cblas.h)" "libopenblas-openmp-dev")

find_path(XXHASH_INCLUDE_DIR xxhash.h)
find_library(XXHASH_LIBRARY xxhash)
if(XXHASH_INCLUDE_DIR AND XXHASH_LIBRARY)
  set(XXHASH_FOUND TRUE)
endif()
sfa_need(XXHASH_FOUND "xxHash" "libxxhash-dev")

find_path(PCRE2_INCLUDE_DIR pcre2.h)
find_library(PCRE2_LIBRARY pcre2-8)
if(PCRE2_INCLUDE_DIR AND PCRE2_LIBRARY)
  set(PCRE2_FOUND TRUE)
endif()
sfa_need(PCRE2_FOUND "PCRE2 (8-bit library)" "libpcre2-dev")
find_path(UTF8PROC_INCLUDE_DIR utf8proc.h)
find_library(UTF8PROC_LIBRARY utf8proc)
if(UTF8PROC_INCLUDE_DIR AND UTF8PROC_LIBRARY)
  set(UTF8PROC_FOUND TRUE)
endif()
sfa_need(UTF8PROC_FOUND "utf8proc" "libutf8proc-dev")

find_package(ZLIB QUIET)
sfa_need(ZLIB_FOUND "zlib" "zlib1g-dev")
find_package(LibLZMA QUIET)
sfa_need(LIBLZMA_FOUND "liblzma" "liblzma-dev")
find_path(ZSTD_INCLUDE_DIR zstd.h)
find_library(ZSTD_LIBRARY zstd)
if(ZSTD_INCLUDE_DIR AND ZSTD_LIBRARY)
  set(ZSTD_FOUND TRUE)
endif()
sfa_need(ZSTD_FOUND "Zstandard" "libzstd-dev")

# yaml-cpp names its target yaml-cpp up to 0.7 and yaml-cpp::yaml-cpp after.
if(TARGET yaml-cpp::yaml-cpp)
  set(YAML_CPP_TARGET yaml-cpp::yaml-cpp)
else()
  set(YAML_CPP_TARGET yaml-cpp)
endif()
target_include_directories(sfa_dependencies SYSTEM INTERFACE ${HDF5_INCLUDE_DIRS} ${CBLAS_INCLUDE_DIR}
                                                             ${XXHASH_INCLUDE_DIR} ${PCRE2_INCLUDE_DIR}
                                                             ${UTF8PROC_INCLUDE_DIR} ${ZSTD_INCLUDE_DIR})
target_link_libraries(
  sfa_dependencies INTERFACE Threads::Threads OpenMP::OpenMP_CXX spdlog::spdlog fmt::fmt ${YAML_CPP_TARGET}
                             nlohmann_json::nlohmann_json ${HDF5_LIBRARIES} ${CBLAS_LIBRARY} ${XXHASH_LIBRARY}
                             ${PCRE2_LIBRARY} ${UTF8PROC_LIBRARY} ZLIB::ZLIB LibLZMA::LibLZMA
                             ${ZSTD_LIBRARY})

# CUDA: the toolkit with cuBLASLt. AUTO takes it when nvcc is there.
set(SFA_MINIMUM_CUDA 12.4)
set(SFA_HAS_CUDA FALSE)
if(NOT SFA_CUDA STREQUAL "OFF")
  find_program(SFA_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda/bin)
  if(SFA_NVCC)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES "80-virtual;90a-real")
    endif()
    set(CMAKE_CUDA_COMPILER ${SFA_NVCC})
    enable_language(CUDA)
    find_package(CUDAToolkit QUIET)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS SFA_MINIMUM_CUDA)
      message(FATAL_ERROR "CUDA ${CMAKE_CUDA_COMPILER_VERSION} at ${SFA_NVCC} is too old; ${SFA_MINIMUM_CUDA} or newer "
                          "is needed. Point CUDA_HOME at a newer toolkit, or build without a GPU: -DSFA_CUDA=OFF")
    endif()
    sfa_need(CUDAToolkit_FOUND "The CUDA toolkit beside ${SFA_NVCC}" "cuda-toolkit")
    # CMake 3.25 does not know that nvcc has C++20; later ones do.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(SFA_HAS_CUDA TRUE)
    target_link_libraries(sfa_dependencies INTERFACE CUDA::cudart_static CUDA::cublasLt)
  elseif(SFA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SFA_CUDA=ON, but nvcc was not found. Install the CUDA toolkit (${SFA_MINIMUM_CUDA} or newer) "
                        "or set CUDA_HOME to it; without a GPU build with -DSFA_CUDA=OFF.")
  endif()
endif()

set(SFA_HAS_MPI FALSE)
if(NOT SFA_MPI STREQUAL "OFF")
  find_package(MPI QUIET COMPONENTS CXX)
  if(MPI_CXX_FOUND)
    set(SFA_HAS_MPI TRUE)
    # The headers are for one file of src/dist alone (CMakeLists.txt).
    target_link_libraries(sfa_dependencies INTERFACE ${MPI_CXX_LIBRARIES})
  elseif(SFA_MPI STREQUAL "ON")
    sfa_need(MPI_CXX_FOUND "MPI" "libopenmpi-dev openmpi-bin")
  endif()
endif()
# NCCL: the header alone. The library is loaded when a job of several GPUs begins, so that programs run without it.
set(SFA_HAS_NCCL FALSE)
if(SFA_HAS_CUDA AND NOT SFA_NCCL STREQUAL "OFF")
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} ENV NCCL_HOME PATH_SUFFIXES include)
  if(NCCL_INCLUDE_DIR)
    set(SFA_HAS_NCCL TRUE)
    target_link_libraries(sfa_dependencies INTERFACE ${CMAKE_DL_LIBS})
  elseif(SFA_NCCL STREQUAL "ON")
    sfa_need(NCCL_INCLUDE_DIR "NCCL (nccl.h)" "cuda-nccl libnccl-dev")
  endif()
endif()
message(STATUS "sfa: CUDA ${SFA_HAS_CUDA}, NCCL ${SFA_HAS_NCCL}, MPI ${SFA_HAS_MPI}, BLAS ${CBLAS_LIBRARY}")
