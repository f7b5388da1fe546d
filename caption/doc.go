// Package caption asks a vision-language model about many images and loses no answer.
//
// A run is a line of stages over [Item] values, each stage bounded:
//
//	Source → read (hash, header) → decide (skip, duplicate, ask) → ask (adaptive concurrency) → write (one line a record)
//
// The output is its own journal: [Journal] appends rows, each by one write, and a second run over the same output goes
// on where the first one stopped, however it ended. Memory does not grow with the number of images: the index of what
// is done lies in a file.
package caption
