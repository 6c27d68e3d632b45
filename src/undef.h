/* In hyperattn.h an #undef of every internal macro stands here, which amalgamate.cmake makes. A program that
   includes all.h keeps the macros. */
