# hyperattn.h within a build of llama.cpp, for all programs on it, by one more option of its configuration:
#
#   cmake -S llama.cpp -B build -DCMAKE_PROJECT_llama.cpp_INCLUDE=FOLDER/examples/ggml/in-tree.cmake
#
# llama.cpp's own project() includes this file, so nothing of llama.cpp is changed. The backend becomes a part of
# libllama and registers itself when that is loaded. Where ggml's backends are libraries (GGML_BACKEND_DL), it is one too,
# libggml-hyperattn.so, which GGML_BACKEND_PATH names. Needs CMake 3.19. Not for a static build with backends for GPUs: it
# registers before theirs are ready.
include(${CMAKE_CURRENT_LIST_DIR}/sources.cmake)
set(HYPERATTN_FOLDER ${CMAKE_CURRENT_LIST_DIR}/../..)

function(add_ggml_hyperattn)
  if(GGML_BACKEND_DL)
    add_library(ggml-hyperattn MODULE ${HYPERATTN_GGML_SOURCES})
    set_target_properties(ggml-hyperattn PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_RUNTIME_OUTPUT_DIRECTORY})
    target_link_libraries(ggml-hyperattn PRIVATE m ${CMAKE_DL_LIBS})
  else()
    add_library(ggml-hyperattn OBJECT ${HYPERATTN_GGML_SOURCES})
    target_compile_definitions(ggml-hyperattn PRIVATE GGML_HYPERATTN_LINKED)
    target_sources(llama PRIVATE $<TARGET_OBJECTS:ggml-hyperattn>)
    # of a static libllama, programs would leave out what they do not name
    target_link_options(llama INTERFACE LINKER:-u,ggml_backend_init)
    target_link_libraries(llama PRIVATE m ${CMAKE_DL_LIBS})
  endif()
  target_include_directories(ggml-hyperattn PRIVATE ${HYPERATTN_FOLDER}
                                                    $<TARGET_PROPERTY:ggml,INTERFACE_INCLUDE_DIRECTORIES>)
  set_target_properties(ggml-hyperattn PROPERTIES C_STANDARD 11 C_EXTENSIONS OFF C_VISIBILITY_PRESET hidden
                                                  POSITION_INDEPENDENT_CODE ON)
endfunction()
cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL add_ggml_hyperattn)
