// Package image draws an image in a terminal, and text that streams in beside it.
package termimage

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"math"
	"strings"

	"github.com/disintegration/imaging"
)

// Protocol is a way in which a terminal shows images.
type Protocol int

const (
	// None: not at all.
	None Protocol = iota
	// HalfBlocks256 and HalfBlocks: as characters, each two square pixels high, in the
	// 256 colours of xterm or in 24-bit colour.
	HalfBlocks256
	HalfBlocks
	// Kitty is the terminal graphics protocol of kitty.
	Kitty
	// ITerm is the inline images protocol of iTerm2.
	ITerm
)

// Detect returns what the terminal that env, such as os.Getenv, describes can show. It
// goes by the variables that kitty, Ghostty, WezTerm and iTerm2 document. A terminal
// multiplexer passes no graphics on, so in one it is characters. isTTY says that the
// output is a terminal at all.
func Detect(env func(string) string, isTTY bool) Protocol {
	term, program := env("TERM"), env("TERM_PROGRAM")
	switch {
	case !isTTY, env("NO_COLOR") != "", term == "dumb", term == "":
		return None
	case env("TMUX") != "", strings.HasPrefix(term, "screen"), strings.HasPrefix(term, "tmux"):
	case term == "xterm-kitty", env("KITTY_WINDOW_ID") != "",
		term == "xterm-ghostty", program == "ghostty", program == "WezTerm":
		return Kitty
	case program == "iTerm.app", env("LC_TERMINAL") == "iTerm2":
		return ITerm
	}
	if c := env("COLORTERM"); c == "truecolor" || c == "24bit" {
		return HalfBlocks
	}
	return HalfBlocks256
}

// fit returns the largest size in character cells, of at most cols by rows, in which
// img keeps its shape. A cell is taken to be twice as high as wide.
func fit(img image.Image, cols, rows int) (c, r int) {
	w, h := float64(img.Bounds().Dx()), float64(img.Bounds().Dy())
	scale := min(float64(cols)/w, 2*float64(rows)/h)
	return max(1, min(cols, int(math.Round(w*scale)))), max(1, min(rows, int(math.Round(h*scale/2))))
}

// Draw draws img over at most cols by rows character cells, keeping its shape. It
// starts in the first column of the line of the cursor, scrolls up what is above if
// there is no room below, and leaves the cursor in the first column below the image.
func Draw(w io.Writer, img image.Image, cols, rows int, p Protocol) error {
	if p == None {
		return nil
	}
	if cols < 1 || rows < 1 {
		return fmt.Errorf("termimage: cannot draw on %d columns and %d rows: at least 1 of each is needed", cols, rows)
	}
	if img.Bounds().Empty() {
		return fmt.Errorf("termimage: the image has %d by %d pixels: at least 1 of each is needed", img.Bounds().Dx(), img.Bounds().Dy())
	}
	c, r := fit(img, cols, rows)
	var b bytes.Buffer
	// The lines are made first, so that the image itself scrolls nothing; where a
	// terminal leaves the cursor after an image does not matter then.
	fmt.Fprintf(&b, "\r%s\x1b[%dA\x1b7", strings.Repeat("\n", r), r)
	var err error
	switch p {
	case Kitty:
		err = kitty(&b, img, c, r)
	case ITerm:
		err = iterm(&b, img, c, r)
	default:
		halfBlocks(&b, img, c, r, p)
	}
	if err != nil {
		return fmt.Errorf("termimage: %w", err)
	}
	fmt.Fprintf(&b, "\x1b8\x1b[%dB", r)
	_, err = w.Write(b.Bytes())
	return err
}

// halfBlocks writes r lines of c characters "▀", which show the pixel above in the
// foreground's colour and the one below in the background's.
func halfBlocks(b *bytes.Buffer, img image.Image, c, r int, p Protocol) {
	small := imaging.Resize(img, c, 2*r, imaging.Lanczos)
	for y := range r {
		if y > 0 {
			b.WriteString("\r\n")
		}
		last := ""
		for x := range c {
			sgr := fmt.Sprintf("\x1b[38;%s;48;%sm", colour(small.At(x, 2*y), p), colour(small.At(x, 2*y+1), p))
			if sgr != last {
				b.WriteString(sgr)
				last = sgr
			}
			b.WriteString("▀")
		}
		b.WriteString("\x1b[0m")
	}
}

// colour returns the arguments of SGR 38 and 48 for c over black.
func colour(c color.Color, p Protocol) string {
	r16, g16, b16, _ := c.RGBA()
	r, g, b := int(r16>>8), int(g16>>8), int(b16>>8)
	if p == HalfBlocks {
		return fmt.Sprintf("2;%d;%d;%d", r, g, b)
	}
	return fmt.Sprintf("5;%d", xterm256(r, g, b))
}

// xterm256 returns the nearest colour of xterm's palette beyond the 16 that users
// change: a cube of 6 levels a channel from 16, and 24 greys from 232.
func xterm256(r, g, b int) int {
	level := func(v int) (i, value int) {
		levels := [6]int{0, 95, 135, 175, 215, 255}
		for j := range levels {
			if abs(v-levels[j]) < abs(v-levels[i]) {
				i = j
			}
		}
		return i, levels[i]
	}
	distance := func(r1, g1, b1 int) int {
		return (r-r1)*(r-r1) + (g-g1)*(g-g1) + (b-b1)*(b-b1)
	}
	ri, rv := level(r)
	gi, gv := level(g)
	bi, bv := level(b)
	grey := max(0, min(23, ((r+g+b)/3-3)/10)) // of 8, 18, … 238
	if v := 8 + 10*grey; distance(v, v, v) < distance(rv, gv, bv) {
		return 232 + grey
	}
	return 16 + 36*ri + 6*gi + bi
}

func abs(v int) int { return max(v, -v) }

// encode returns img as PNG in base64, no larger than c by r cells of a fine screen need.
func encode(img image.Image, c, r int) (data string, size int, err error) {
	var b bytes.Buffer
	if err := png.Encode(&b, imaging.Fit(img, 20*c, 40*r, imaging.Lanczos)); err != nil {
		return "", 0, err
	}
	return base64.StdEncoding.EncodeToString(b.Bytes()), b.Len(), nil
}

// kitty writes img in chunks: https://sw.kovidgoyal.net/kitty/graphics-protocol/.
// a=T: show at once; f=100: PNG; C=1: leave the cursor; q=2: answer nothing.
func kitty(b *bytes.Buffer, img image.Image, c, r int) error {
	const chunk = 4096
	data, _, err := encode(img, c, r)
	if err != nil {
		return err
	}
	keys := fmt.Sprintf("a=T,f=100,C=1,q=2,c=%d,r=%d,", c, r)
	for len(data) > chunk {
		fmt.Fprintf(b, "\x1b_G%sm=1;%s\x1b\\", keys, data[:chunk])
		data, keys = data[chunk:], "q=2,"
	}
	fmt.Fprintf(b, "\x1b_G%sm=0;%s\x1b\\", keys, data)
	return nil
}

// iterm writes img as a file to show inline: https://iterm2.com/documentation-images.html.
func iterm(b *bytes.Buffer, img image.Image, c, r int) error {
	data, size, err := encode(img, c, r)
	if err != nil {
		return err
	}
	fmt.Fprintf(b, "\x1b]1337;File=inline=1;size=%d;width=%d;height=%d;preserveAspectRatio=0:%s\a", size, c, r, data)
	return nil
}
