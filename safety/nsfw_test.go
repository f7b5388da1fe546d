package safety

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/mmserve/mmserve/internal/imaging"
)

// The classifier that convert-tfjs makes of nsfwjs' MobileNet says of photos what nsfwjs itself says, which runs in
// Node.
func TestNSFW(t *testing.T) {
	root := models(t)
	photos, err := filepath.Glob(filepath.Join("..", "vision", "testdata", "pictures", "*.jpg"))
	if err != nil || len(photos) < 3 {
		t.Fatalf("%d photos, %v", len(photos), err)
	}
	c, err := openImageClassifier(ClassifierConfig{Kind: "image", Folder: filepath.Join(root, "nsfw"),
		Labels: map[string]Category{"Porn": Sexual, "Hentai": Sexual}}, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	}()
	args, dir := []string{"nsfw.cjs"}, t.TempDir()
	var ours [][]float32
	for i, photo := range photos {
		raw, err := os.ReadFile(photo)
		if err != nil {
			t.Fatal(err)
		}
		p, err := imaging.Decode(t.Context(), raw, imaging.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(name, p.Pix, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, strconv.Itoa(p.W), strconv.Itoa(p.H), name)
		scores, err := c.scores(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		ours = append(ours, scores)
	}
	cmd := exec.Command("node", args...)
	cmd.Dir = "testdata"
	modules, err := filepath.Abs(filepath.Join(root, "node_modules"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %.2000s", err, stderr.String())
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	var theirs []map[string]float64
	if err := json.Unmarshal(lines[len(lines)-1], &theirs); err != nil || len(theirs) != len(ours) {
		t.Fatalf("%.500s: %v", out, err)
	}
	worst := 0.0
	for i, answer := range theirs {
		for k, label := range []string{"Drawing", "Hentai", "Neutral", "Porn", "Sexy"} {
			worst = max(worst, math.Abs(answer[label]-float64(ours[i][k])))
		}
		t.Log(filepath.Base(photos[i]), fmt.Sprintf("%.4f", ours[i]), answer)
	}
	if worst > 1e-4 {
		t.Errorf("the answers differ by %g", worst)
	}
	t.Logf("of %d photos the probabilities differ by %g at most", len(photos), worst)
}
