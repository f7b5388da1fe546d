package tokenizer

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
)

const (
	cacheShards   = 16
	shardWords    = 2048 // about 32,000 words in all, some 5 MB
	maxCachedWord = 64   // bytes; longer words are rare and do not come twice
)

// wordCache remembers the ids of words. It is bounded, and sharded so that requests do
// not wait for each other.
type wordCache struct {
	seed   maphash.Seed
	shards [cacheShards]cacheShard
}

type cacheShard struct {
	mu    sync.RWMutex
	words map[string][]int32
}

func newWordCache() *wordCache {
	c := &wordCache{seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i].words = make(map[string][]int32)
	}
	return c
}

func (c *wordCache) shard(word string) *cacheShard {
	return &c.shards[maphash.String(c.seed, word)%cacheShards]
}

// get returns the ids of word, which the caller must not change.
func (c *wordCache) get(word string) ([]int32, bool) {
	if len(word) > maxCachedWord {
		return nil, false
	}
	s := c.shard(word)
	s.mu.RLock()
	ids, ok := s.words[word]
	s.mu.RUnlock()
	return ids, ok
}

// put copies both word, which may be a part of a large text, and ids.
func (c *wordCache) put(word string, ids []int32) {
	if len(word) > maxCachedWord {
		return
	}
	word, ids = strings.Clone(word), slices.Clone(ids)
	s := c.shard(word)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.words) >= shardWords {
		for victim := range s.words { // the order of a map is as good as random
			delete(s.words, victim)
			break
		}
	}
	s.words[word] = ids
}
