//go:build (amd64 && !windows) || (arm64 && linux)

// Why not ONNX Runtime's own pool: it has one for each session, so a decoder and a tower on two cores run four threads that
// fight; and its threads either spin for as long as nothing comes or sleep between any two nodes. Here a member that
// has run out of work looks out for more as long as a small node takes, then sleeps, and a caller never waits for one.

#include "team.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#ifdef __aarch64__
#define PAUSE() __asm__ volatile("isb" ::: "memory") // waits for some tens of cycles, where "yield" does nothing
#else
#include <immintrin.h>
#define PAUSE() _mm_pause()
#endif

// A loop is what team_run was asked for. Loops lie in fixed places, so that a member may look at one that has just ended.
typedef struct {
  _Alignas(64) atomic_int claimed; // by a caller, from before it is opened until after it is over
  atomic_int open;                 // members may take tasks
  atomic_int members;              // that are looking at it; the caller leaves when it is closed and they are gone
  atomic_size_t next;
  size_t n;
  void (*task)(void *, size_t);
  void *arg;
} loop;

#define LOOPS 16
static loop loops[LOOPS];
static atomic_uint posted; // counts openings: how a member that spins learns of one
static atomic_int asleep, size;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;

static int take(loop *l) {
  const size_t i = atomic_fetch_add(&l->next, 1);
  if (i >= l->n) return 0;
  l->task(l->arg, i);
  return 1;
}

// help takes one task of any open loop. Small loops first: a decode step must not wait behind an image.
static int help(void) {
  loop *best = NULL;
  for (int i = 0; i < LOOPS; i++) {
    loop *l = &loops[i];
    if (!atomic_load(&l->open)) continue;
    atomic_fetch_add(&l->members, 1);
    // Only now is it certain that the caller waits for us, if it is still open.
    if (!atomic_load(&l->open) || atomic_load(&l->next) >= l->n || (best && best->n <= l->n)) {
      atomic_fetch_sub(&l->members, 1);
      continue;
    }
    if (best) atomic_fetch_sub(&best->members, 1);
    best = l;
  }
  if (!best) return 0;
  const int took = take(best);
  atomic_fetch_sub(&best->members, 1);
  return took;
}

// Looks for work that a member takes before it sleeps: some 50 µs, longer than the nodes between two loops take.
#define LOOKS 2000

static void *member(void *unused) {
  (void)unused;
  for (;;) {
    unsigned seen = 0;
    for (int i = 0; i < LOOKS; i++) {
      seen = atomic_load(&posted); // before looking: what is posted later is not missed
      while (help()) i = 0;
      for (int pause = 0; pause < 8 && atomic_load_explicit(&posted, memory_order_relaxed) == seen; pause++) PAUSE();
    }
    pthread_mutex_lock(&mutex);
    atomic_fetch_add(&asleep, 1);
    while (atomic_load(&posted) == seen) pthread_cond_wait(&wake, &mutex);
    atomic_fetch_sub(&asleep, 1);
    pthread_mutex_unlock(&mutex);
  }
  return NULL;
}

void team_grow(int n) {
  sigset_t all, old;
  pthread_mutex_lock(&mutex);
  sigfillset(&all); // signals are the Go runtime's
  pthread_sigmask(SIG_SETMASK, &all, &old);
  while (atomic_load(&size) < n) {
    pthread_t t;
    if (pthread_create(&t, NULL, member, NULL)) break; // with fewer members it is slower, not wrong
    pthread_detach(t);
    atomic_fetch_add(&size, 1);
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  pthread_mutex_unlock(&mutex);
}

static loop *claim(void) {
  for (int i = 0; i < LOOPS; i++) {
    int no = 0;
    if (!atomic_load(&loops[i].claimed) && atomic_compare_exchange_strong(&loops[i].claimed, &no, 1)) return &loops[i];
  }
  return NULL;
}

void team_run(void (*task)(void *, size_t), void *arg, size_t n) {
  loop *l = n > 1 && atomic_load(&size) ? claim() : NULL;
  if (!l) {
    for (size_t i = 0; i < n; i++) task(arg, i);
    return;
  }
  l->n = n, l->task = task, l->arg = arg;
  atomic_store(&l->next, 0);
  atomic_store(&l->open, 1);
  atomic_fetch_add(&posted, 1);
  if (atomic_load(&asleep)) {
    pthread_mutex_lock(&mutex); // a member between its last look and its sleep must not miss this
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&mutex);
  }
  while (take(l)) continue;
  atomic_store(&l->open, 0);
  while (atomic_load(&l->members)) PAUSE();
  atomic_store(&l->claimed, 0);
}
