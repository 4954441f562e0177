# sfa_unite(RESULT file...): with SFA_UNITE, RESULT holds files that include up to two dozen of one folder each, and those that stay apart.
# Templates of the headers (JSON, fmt, the command line, GoogleTest) are then compiled once a folder and not once a file, which
# is most of the time. Sources that compute keep the optimisation of the build. The others take little of a test's time: they go with -O1,
# which still warns of what it sees in the flow of values, and with none under sanitizers, where optimising costs twice the rest.
# Under sanitizers those others go without UBSan's checks of pointers too: AddressSanitizer reports a null pointer or a lost object
# when it is used, alignment is a matter of what computes, and the checks take a seventh of such a tree's compile time.
# A file stays apart when names in its anonymous namespace are also a neighbour's, or when it has flags of its own.
set(SFA_APART "/src/analysis/html_plot|/src/app/bench_step|/src/checkpoint/model_checkpoint|/src/dist/mpi_|_avx512"
              "/src/ops/linear/linear\\.|/tests/checkpoint/crash|/tests/gpu/(feature_balance|flash_attention|head_map|linear|memory|posting_list|qk_norm_rope)"
              "/tests/models/(gradient|parameters|qwen3_golden|recompute)|/tests/ops/(classifier|head_map|linear|qk_norm_rope|swiglu)"
              "/tests/tokenizer/bpe_trainer")
list(JOIN SFA_APART "|" SFA_APART)
set(SFA_COMPUTING "^(src_(attention|core|data|models|ops|optim|tokenizer)|tests_(attention|ops|optim))$")

function(sfa_unite result)
  if(NOT SFA_UNITE)
    set(${result} ${ARGN} PARENT_SCOPE)
    return()
  endif()
  set(sources "")
  set(slow "")
  set(slow_options -O1)
  if(SFA_SANITIZE)
    set(slow_options -O0 -fno-sanitize=null,alignment,object-size,vptr)
  endif()
  set(folders "")
  list(SORT ARGN)
  foreach(source IN LISTS ARGN)
    file(RELATIVE_PATH folder ${PROJECT_SOURCE_DIR} ${source})
    string(REGEX REPLACE "^([^/]+)/([^/]+)/.*" "\\1_\\2" folder ${folder})
    if(source MATCHES "${SFA_APART}")
      list(APPEND sources ${source})
      if(NOT folder MATCHES "${SFA_COMPUTING}")
        list(APPEND slow ${source})
      endif()
    else()
      list(APPEND folders ${folder})
      list(APPEND of_${folder} ${source})
    endif()
  endforeach()
  list(REMOVE_DUPLICATES folders)
  foreach(folder IN LISTS folders)
    set(part 0)
    while(of_${folder})
      list(SUBLIST of_${folder} 0 24 files)
      list(REMOVE_ITEM of_${folder} ${files})
      list(TRANSFORM files REPLACE "(.+)" "#include \"\\1\"\n")
      list(JOIN files "" files)
      set(united ${CMAKE_CURRENT_BINARY_DIR}/united/${folder}_${part}.cpp)
      file(CONFIGURE OUTPUT ${united} CONTENT "${files}" @ONLY)
      list(APPEND sources ${united})
      # A local name may be a global one of a neighbour. And GCC takes the file that includes for the only one whose classes may use an
      # anonymous namespace.
      if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        set_property(SOURCE ${united} APPEND PROPERTY COMPILE_OPTIONS -Wno-shadow -Wshadow=local -Wno-subobject-linkage)
      endif()
      if(NOT folder MATCHES "${SFA_COMPUTING}")
        list(APPEND slow ${united})
      endif()
      math(EXPR part "${part} + 1")
    endwhile()
  endforeach()
  set_property(SOURCE ${slow} APPEND PROPERTY COMPILE_OPTIONS ${slow_options})
  # A tenth of the time goes into collecting garbage of a memory that such a file, of 1.5 GB at most, never fills.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set_property(SOURCE ${sources} APPEND PROPERTY COMPILE_OPTIONS --param=ggc-min-expand=400 --param=ggc-min-heapsize=800000)
  endif()
  set(${result} ${sources} PARENT_SCOPE)
endfunction()
