// What this library was built from, readable in the file without loading it.
#ifndef VLEAK_BUILD_INFO
#define VLEAK_BUILD_INFO "{}"
#endif

extern "C" __attribute__((visibility("default"), used)) const char vleak_build_info[] =
    "vleak-build-info:" VLEAK_BUILD_INFO;
