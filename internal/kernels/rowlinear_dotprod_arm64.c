//go:build linux

#include "rowlinear.h"

#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))

#include "vector_arm64.h"

#include "rowlinear_dotprod_arm64.h"

#define FORM(name) name##_dotprod
#define MOST_ROWS 4
#define MOST_ROWS4 4
#define WHOLE 1
#define sums dot_sums
#define sums4 dot_sums4

#include "rowlinear_tile_arm64.h"
