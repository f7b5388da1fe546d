package model

import (
	"embed"
	"io/fs"
)

// defaultName is what the API calls the embedded model.
const defaultName = "tiny-vlm"

//go:embed all:tiny-vlm
var embedded embed.FS

//go:embed tiny-vlm-questions.zip
var questions string

// DefaultFiles are the folder of the embedded model.
func DefaultFiles() fs.FS {
	sub, err := fs.Sub(embedded, defaultName)
	if err != nil {
		panic(err) // the directive above names the folder
	}
	return sub
}

// Samples are the default model's sample images, by file name, in order.
func Samples() fs.FS {
	sub, err := fs.Sub(DefaultFiles(), "samples")
	if err != nil {
		panic(err)
	}
	return sub
}

// Questions is an archive of questions that the default model was not trained on, their images and their answers.
func Questions() string { return questions }
