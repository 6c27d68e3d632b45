# The backend's sources, for CMakeLists.txt and in-tree.cmake.
set(HYPERATTN_GGML_SOURCES ggml-hyperattn.c attention.c crew.c host.c mask.c settings.c)
list(TRANSFORM HYPERATTN_GGML_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
