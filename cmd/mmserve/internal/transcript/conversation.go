// Package transcript holds a conversation of the terminal: what was said, what waits to be sent, and how both are kept
// in a file. It draws nothing and calls nobody.
package transcript

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// Image is an image file that goes with a message.
type Image struct {
	Name          string // how the user named it
	Data          []byte // the file's bytes
	Format        string // "png", "jpeg", …; empty if not known
	Width, Height int    // pixels after orientation; 0 if not known
}

// Part is a piece of a message: a text, or an image if that is not nil.
type Part struct {
	Text  string
	Image *Image
}

// Turn is a question and, once it is there, its answer.
type Turn struct {
	Question []Part
	Answer   string
	Answered bool
}

// Text is the question without its images.
func (t Turn) Text() string {
	var list []string
	for _, p := range t.Question {
		if p.Image == nil {
			list = append(list, p.Text)
		}
	}
	return strings.TrimSpace(strings.Join(list, " "))
}

// Images are those of the question.
func (t Turn) Images() (list []*Image) {
	for _, p := range t.Question {
		if p.Image != nil {
			list = append(list, p.Image)
		}
	}
	return list
}

// Conversation is what was said so far. Only its last turn may be without an answer: one that failed or was not asked
// yet. The zero value is an empty one.
type Conversation struct {
	System  string
	Turns   []Turn
	Pending []*Image // go with the next message
}

// Ask adds a question, of which the pending images are the first parts. A question that has no answer is replaced, and
// its images go with this one.
func (c *Conversation) Ask(parts []Part) {
	if last := c.last(); last != nil && !last.Answered {
		c.Take()
	}
	question := make([]Part, 0, len(c.Pending)+len(parts))
	for _, img := range c.Pending {
		question = append(question, Part{Image: img})
	}
	c.Pending = nil
	c.Turns = append(c.Turns, Turn{Question: append(question, parts...)})
}

// Answer gives the last question its answer.
func (c *Conversation) Answer(text string) {
	if last := c.last(); last != nil {
		last.Answer, last.Answered = text, true
	}
}

// Retry takes the last answer away, so that its question can be asked again. False: there is no question.
func (c *Conversation) Retry() bool {
	last := c.last()
	if last == nil {
		return false
	}
	last.Answer, last.Answered = "", false
	return true
}

// Undo takes the last turn away.
func (c *Conversation) Undo() (t Turn, ok bool) {
	last := c.last()
	if last == nil {
		return t, false
	}
	t = *last
	c.Turns = c.Turns[:len(c.Turns)-1]
	return t, true
}

// Take takes the last turn away, gives the text of its question, and has its images wait for the next message.
func (c *Conversation) Take() (text string, ok bool) {
	t, ok := c.Undo()
	if !ok {
		return "", false
	}
	c.Pending = append(t.Images(), c.Pending...)
	return t.Text(), true
}

// Clear forgets all but the system's instructions.
func (c *Conversation) Clear() { c.Turns, c.Pending = nil, nil }

// Drop takes pending images away: the one of a number from 1 on, of a name, all of them, or for "" the last.
func (c *Conversation) Drop(which string) ([]*Image, error) {
	n := len(c.Pending)
	if n == 0 {
		return nil, fmt.Errorf("no image waits for the next message")
	}
	if which == "all" {
		gone := c.Pending
		c.Pending = nil
		return gone, nil
	}
	at := -1
	if which == "" {
		at = n - 1
	}
	for i, img := range c.Pending {
		if img.Name == which || filepath.Base(img.Name) == which {
			at = i
		}
	}
	if i, err := strconv.Atoi(which); at < 0 && err == nil {
		if i < 1 || i > n {
			return nil, fmt.Errorf("image %d: want 1 to %d", i, n)
		}
		at = i - 1
	}
	if at < 0 {
		return nil, fmt.Errorf("no image %q waits: want a number from 1 to %d, a name, or all", which, n)
	}
	gone := c.Pending[at]
	c.Pending = append(c.Pending[:at:at], c.Pending[at+1:]...)
	return []*Image{gone}, nil
}

// Images counts the images of all turns.
func (c *Conversation) Images() (n int) {
	for _, t := range c.Turns {
		n += len(t.Images())
	}
	return n
}

func (c *Conversation) last() *Turn {
	if len(c.Turns) == 0 {
		return nil
	}
	return &c.Turns[len(c.Turns)-1]
}
