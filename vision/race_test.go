//go:build race

package vision

func init() { raceDetector = true }
