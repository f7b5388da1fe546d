package caption

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"sync"

	"github.com/mmserve/mmserve/internal/imaging"
)

// job is an image on its way.
type job struct {
	item      Item
	questions []Question
	data      []byte
	look      Row // what is known of the content
	err       error
	read      chan struct{} // closed when the fields above are set

	mu   sync.Mutex
	cost int64 // share of the byte budget
	open int   // tasks that still need data
}

// task is one question about an image.
type task struct {
	job    *job
	prompt string
	row    Row
}

// newJob makes a job with the questions that have no answer for the item as it is; nil if there are none.
func (r *runner) newJob(it Item) (*job, error) {
	j := &job{item: it, read: make(chan struct{})}
	for _, q := range r.o.Config.Questions {
		row, err := r.o.Output.Row(it.Path, q.Name, it.Prompt)
		if err != nil {
			return nil, err
		}
		if row != nil && it.Version != "" && row.Version == it.Version && !r.again(row) {
			r.stats.skip(row)
			continue
		}
		j.questions = append(j.questions, q)
	}
	if len(j.questions) == 0 {
		return nil, nil
	}
	j.cost = it.Size
	if it.Data != nil {
		j.cost = int64(len(it.Data))
	} else if j.cost == 0 {
		j.cost = unknownSize
	}
	j.cost = min(j.cost, imageBudget)
	return j, nil
}

// readAll reads and hashes jobs until there are no more.
func (r *runner) readAll(ctx context.Context) {
	for j := range r.work {
		j.err = j.item.Err
		if j.err == nil {
			j.err = j.load(ctx, r.o.Asker)
		}
		close(j.read)
	}
}

// load reads the content and looks at it.
func (j *job) load(ctx context.Context, a Asker) (err error) {
	limit := imaging.DefaultLimits().MaxBytes
	j.data, err = Read(ctx, j.item, limit)
	for try := 0; try < 3 && errors.Is(err, errChanged); try++ {
		if sleep(ctx, settle<<try) != nil {
			break
		}
		if it := fileItem(j.item.Path); j.item.Local && it.Err == nil {
			j.item.Version = it.Version
		}
		j.data, err = Read(ctx, j.item, limit)
	}
	j.item.Data = nil
	if err != nil {
		return err
	}
	sum := sha256.Sum256(j.data)
	j.look.SHA256 = hex.EncodeToString(sum[:])
	return a.Look(&j.look, j.data)
}

func (r *runner) newTask(j *job, q Question) *task {
	t := &task{job: j, prompt: q.Text, row: j.look}
	if j.item.Prompt != "" {
		t.prompt = j.item.Prompt
	}
	t.row.setPath(j.item)
	t.row.FileName = t.row.ID
	if r.o.FileName != nil {
		t.row.FileName = r.o.FileName(j.item)
	}
	t.row.Question, t.row.Prompt, t.row.Version = q.Name, j.item.Prompt, j.item.Version
	if j.look.SHA256 != "" {
		t.row.Key = key(j.look.SHA256, t.prompt, r.digest)
	}
	return t
}
