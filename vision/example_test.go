package vision_test

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/png"

	"github.com/mmserve/mmserve/vision"
)

// A preprocessor is read from a checkpoint's preprocessor_config.json. Measure says what an image will cost before it
// is decoded; Prepare gives the tiles that the tower takes.
func ExamplePreprocessor() {
	p, err := vision.ParsePreprocessor([]byte(`{
		"image_processor_type": "SiglipImageProcessor", "do_resize": true, "size": {"height": 224, "width": 224},
		"resample": 3, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]
	}`), "")
	if err != nil {
		fmt.Println(err)
		return
	}
	var file bytes.Buffer
	if err := png.Encode(&file, image.NewRGBA(image.Rect(0, 0, 640, 480))); err != nil {
		fmt.Println(err)
		return
	}
	plan, err := vision.Measure(context.Background(), p, file.Bytes(), vision.DefaultLimits(), true)
	if err != nil {
		fmt.Println(err)
		return
	}
	m, err := p.Prepare(context.Background(), file.Bytes(), vision.DefaultLimits(), true)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("planned %d tile, prepared %d of %d×%d pixels from an image of %d×%d\n",
		plan.Grid.Tiles(), m.Grid.Tiles(), m.Size, m.Size, m.Width, m.Height)
	// Output: planned 1 tile, prepared 1 of 224×224 pixels from an image of 640×480
}
