//go:build race

package chat

func init() { race = true }
