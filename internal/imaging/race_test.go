//go:build race

package imaging

func init() { raceDetector = true }
