package termimage_test

import (
	"bytes"
	"encoding/base64"
	"image"
	"image/color"
	"image/png"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/termimage"
)

func TestDetect(t *testing.T) {
	for _, test := range []struct {
		env  string
		tty  bool
		want termimage.Protocol
	}{
		{"TERM=xterm-256color COLORTERM=truecolor", true, termimage.HalfBlocks},
		{"TERM=xterm-256color COLORTERM=24bit", true, termimage.HalfBlocks},
		{"TERM=xterm-256color", true, termimage.HalfBlocks256},
		{"TERM=xterm-256color COLORTERM=truecolor", false, termimage.None},
		{"TERM=xterm-kitty COLORTERM=truecolor NO_COLOR=1", true, termimage.None},
		{"TERM=dumb", true, termimage.None},
		{"", true, termimage.None},
		{"TERM=xterm-kitty", true, termimage.Kitty},
		{"TERM=xterm-256color KITTY_WINDOW_ID=1", true, termimage.Kitty},
		{"TERM=xterm-ghostty", true, termimage.Kitty},
		{"TERM=xterm-256color TERM_PROGRAM=ghostty", true, termimage.Kitty},
		{"TERM=xterm-256color TERM_PROGRAM=WezTerm", true, termimage.Kitty},
		{"TERM=xterm-256color TERM_PROGRAM=iTerm.app", true, termimage.ITerm},
		{"TERM=xterm-256color LC_TERMINAL=iTerm2", true, termimage.ITerm},
		{"TERM=tmux-256color KITTY_WINDOW_ID=1 COLORTERM=truecolor", true, termimage.HalfBlocks},
		{"TERM=xterm-256color TMUX=/tmp/x LC_TERMINAL=iTerm2", true, termimage.HalfBlocks256},
		{"TERM=screen TERM_PROGRAM=WezTerm", true, termimage.HalfBlocks256},
	} {
		vars := make(map[string]string)
		for _, v := range strings.Fields(test.env) {
			name, value, _ := strings.Cut(v, "=")
			vars[name] = value
		}
		if got := termimage.Detect(func(name string) string { return vars[name] }, test.tty); got != test.want {
			t.Errorf("%s, terminal %t: got %d, want %d", test.env, test.tty, got, test.want)
		}
	}
}

// flag is an image of size pixels a side in four coloured quarters.
func flag(size int) image.Image {
	img := image.NewNRGBA(image.Rect(0, 0, size, size))
	for y := range size {
		for x := range size {
			c := color.NRGBA{255, 0, 0, 255}
			switch {
			case x >= size/2 && y >= size/2:
				c = color.NRGBA{250, 240, 10, 255}
			case x >= size/2:
				c = color.NRGBA{0, 128, 255, 255}
			case y >= size/2:
				c = color.NRGBA{100, 101, 99, 255}
			}
			img.SetNRGBA(x, y, c)
		}
	}
	return img
}

func TestHalfBlocks(t *testing.T) {
	for p, want := range map[termimage.Protocol]string{
		termimage.HalfBlocks: "\r\n\x1b[1A\x1b7" +
			"\x1b[38;2;255;0;0;48;2;100;101;99m▀\x1b[38;2;0;128;255;48;2;250;240;10m▀\x1b[0m" +
			"\x1b8\x1b[1B",
		termimage.HalfBlocks256: "\r\n\x1b[1A\x1b7" +
			"\x1b[38;5;196;48;5;241m▀\x1b[38;5;33;48;5;226m▀\x1b[0m" +
			"\x1b8\x1b[1B",
		termimage.None: "",
	} {
		var b bytes.Buffer
		if err := termimage.Draw(&b, flag(2), 2, 1, p); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("protocol %d:\n got %q\nwant %q", p, b.String(), want)
		}
	}
}

// noise is an image that does not compress.
func noise() image.Image {
	img := image.NewNRGBA(image.Rect(0, 0, 64, 64))
	state := uint32(1)
	for i := range img.Pix {
		state = state*1664525 + 1013904223
		img.Pix[i] = byte(state>>24) | byte(i%4/3*255) // opaque
	}
	return img
}

func TestKitty(t *testing.T) {
	var b bytes.Buffer
	if err := termimage.Draw(&b, noise(), 10, 5, termimage.Kitty); err != nil {
		t.Fatal(err)
	}
	body, ok := strings.CutPrefix(b.String(), "\r\n\n\n\n\n\x1b[5A\x1b7")
	body, ok2 := strings.CutSuffix(body, "\x1b8\x1b[5B")
	if !ok || !ok2 {
		t.Fatalf("got %.40q…", b.String())
	}
	chunks := regexp.MustCompile(`\x1b_G([^;]*);([^\x1b]*)\x1b\\`).FindAllStringSubmatch(body, -1)
	if len(chunks) < 3 {
		t.Fatalf("%d chunks: the image should need more", len(chunks))
	}
	data, whole := "", ""
	for i, chunk := range chunks {
		want := "q=2,m=1"
		switch i {
		case 0:
			want = "a=T,f=100,C=1,q=2,c=10,r=5,m=1"
		case len(chunks) - 1:
			want = "q=2,m=0"
		}
		if chunk[1] != want {
			t.Errorf("chunk %d has keys %q, want %q", i, chunk[1], want)
		}
		if len(chunk[2]) > 4096 || i < len(chunks)-1 && len(chunk[2])%4 != 0 {
			t.Errorf("chunk %d has %d bytes: at most 4096, and whole groups of 4, are allowed", i, len(chunk[2]))
		}
		data += chunk[2]
		whole += chunk[0]
	}
	if whole != body {
		t.Error("there is something between the chunks")
	}
	checkPNG(t, data, noise())
}

func TestITerm(t *testing.T) {
	var b bytes.Buffer
	if err := termimage.Draw(&b, flag(4), 10, 2, termimage.ITerm); err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("^\r\n\n\x1b\\[2A\x1b7\x1b\\]1337;File=inline=1;size=\\d+;width=4;height=2;preserveAspectRatio=0:([^\a]*)\a\x1b8\x1b\\[2B$").FindStringSubmatch(b.String())
	if m == nil {
		t.Fatalf("got %q", b.String())
	}
	checkPNG(t, m[1], flag(4))
}

func checkPNG(t *testing.T, data string, want image.Image) {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		t.Fatal(err)
	}
	got, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if got.Bounds() != want.Bounds() {
		t.Fatalf("the PNG is %v, want %v", got.Bounds(), want.Bounds())
	}
	for y := range want.Bounds().Dy() {
		for x := range want.Bounds().Dx() {
			r, g, b, _ := got.At(x, y).RGBA()
			opaque := color.RGBA64{uint16(r), uint16(g), uint16(b), 0xffff}
			if opaque != color.RGBA64Model.Convert(want.At(x, y)) {
				t.Fatalf("pixel %d, %d differs", x, y)
			}
		}
	}
}

func TestDrawRefuses(t *testing.T) {
	if err := termimage.Draw(io.Discard, flag(2), 0, 1, termimage.Kitty); err == nil {
		t.Error("no columns: no error")
	}
	if err := termimage.Draw(io.Discard, image.NewNRGBA(image.Rect(0, 0, 0, 5)), 1, 1, termimage.HalfBlocks); err == nil {
		t.Error("no pixels: no error")
	}
}

const text = "A cat sits on a \x1b[31mred\x07 mat, which lies\tin the sun:\n\n  - an indented antidisestablishmentarianism\n" +
	"  - 猫は赤いマットの上に座っている。 caf\u0065\u0301\n"

func TestBeside(t *testing.T) {
	const want = `$ mmserve
████████  A cat sits on a
████████  [31mred mat, which
████████  lies in the sun:
████████
            - an indented
          antidisestablishment
          arianism
            - 猫は赤いマットの
          上に座っている。
          cafe
$`
	for _, p := range []termimage.Protocol{termimage.HalfBlocks, termimage.HalfBlocks256, termimage.Kitty,
		termimage.ITerm} {
		for _, fragment := range []int{1, 3, 7, len(text)} {
			s := newScreen(t, 31, 30)
			io.WriteString(s, "$ mmserve\r\n")
			b, err := termimage.NewBesideSized(s, flag(64), p, 31, 6)
			if err != nil {
				t.Fatal(err)
			}
			for rest := strings.TrimSuffix(text, "\n"); rest != ""; {
				n := min(fragment, len(rest))
				if _, err := io.WriteString(b, rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			io.WriteString(s, "$")
			if got := s.String(); got != want {
				t.Errorf("protocol %d, %d bytes at a time:\n%s\nwant\n%s", p, fragment, got, want)
			}
		}
	}
}

func TestBesideShapes(t *testing.T) {
	for name, test := range map[string]struct {
		cols, rows int
		p          termimage.Protocol
		text, want string
	}{
		"short text":    {31, 6, termimage.Kitty, "Hi.", "████████  Hi.\n████████\n████████\n████████\n$"},
		"no text":       {31, 6, termimage.Kitty, "", "████████\n████████\n████████\n████████\n$"},
		"as many lines": {31, 4, termimage.HalfBlocks, "a\nb", "████  a\n████  b\n$"},
		"narrow: below": {20, 4, termimage.HalfBlocks, "This text does not fit beside", "████\n████\nThis text does not\nfit beside\n$"},
		"no image":      {12, 4, termimage.None, "just text here", "just text\nhere\n$"},
		"tiny":          {1, 1, termimage.HalfBlocks, "ab", "█\na\nb\n$"},
		"break at spaces": {26, 4, termimage.None, "a b  c " + strings.Repeat("d", 19) + "    e",
			"a b  c\n" + strings.Repeat("d", 19) + "    e\n$"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScreen(t, test.cols, 12)
			b, err := termimage.NewBesideSized(s, flag(8), test.p, test.cols, test.rows)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(b, test.text)
			b.Close()
			io.WriteString(s, "$")
			if s.String() != test.want {
				t.Errorf("got\n%s\nwant\n%s", s, test.want)
			}
		})
	}
}

// At the bottom of the window everything scrolls together.
func TestBesideScrolls(t *testing.T) {
	s := newScreen(t, 31, 6)
	io.WriteString(s, "1\r\n2\r\n3\r\n4\r\n5\r\n")
	b, err := termimage.NewBesideSized(s, flag(64), termimage.HalfBlocks, 31, 6)
	if err != nil {
		t.Fatal(err)
	}
	if want := "5\n████████\n████████\n████████\n████████"; s.String() != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
	io.WriteString(b, "a\nb\nc\nd\ne\nf")
	b.Close()
	io.WriteString(s, "$")
	if want := "████████  b\n████████  c\n████████  d\n          e\n          f\n$"; s.String() != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
}

// FuzzBeside checks on the screen that no text disturbs the image or the terminal,
// and that it looks the same however it is cut into fragments.
func FuzzBeside(f *testing.F) {
	f.Add(text, uint8(31), uint8(6), uint8(3))
	f.Add("\x1b]0;x\a\x1b[2J\u009b3A\u202e\u2028\xff\xe7\x8c", uint8(80), uint8(24), uint8(1))
	f.Add("  猫  \t e\u0301 "+strings.Repeat("w", 90), uint8(2), uint8(2), uint8(2))
	f.Fuzz(func(t *testing.T, text string, cols, rows, fragment uint8) {
		c, r, n := max(2, int(cols)), max(3, int(rows%40)), max(1, int(fragment))
		if len(text) > 2000 {
			return
		}
		show := func(n int) string {
			s := newScreen(t, c, r)
			b, err := termimage.NewBesideSized(s, flag(8), termimage.HalfBlocks, c, r)
			if err != nil {
				t.Fatal(err)
			}
			for rest := text; rest != ""; {
				n := min(n, len(rest))
				io.WriteString(b, rest[:n])
				rest = rest[n:]
			}
			b.Close()
			if s.x != 0 {
				t.Errorf("Close leaves the cursor in column %d", s.x)
			}
			return s.String()
		}
		if a, b := show(n), show(max(1, len(text))); a != b {
			t.Errorf("in fragments of %d:\n%s\nat once:\n%s", n, a, b)
		}
	})
}
