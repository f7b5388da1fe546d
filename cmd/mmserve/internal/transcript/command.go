package transcript

import (
	"strings"
	"unicode"
)

// Command is one of the /commands of a chat.
type Command struct {
	Name    string
	Aliases []string
	Args    string // as the help shows them
	Help    string
	File    bool // its argument is a path
}

// Commands are all there are, as /help lists them.
var Commands = []Command{
	{Name: "help", Aliases: []string{"?", "h"}, Help: "show this"},
	{Name: "image", Args: "PATH…", Help: "add images to your next message; a path in the message does as well", File: true},
	{Name: "paste", Help: "add what the clipboard has: an image, or text to edit"},
	{Name: "read", Args: "FILE", Help: "begin your next message with the text of a file, or of all that a pattern matches", File: true},
	{Name: "drop", Args: "[N|NAME|all]", Help: "take an image away that waits (default: the last)"},
	{Name: "undo", Help: "forget the last question and its answer"},
	{Name: "retry", Help: "ask the last question again"},
	{Name: "edit", Help: "change the last question, and ask it then"},
	{Name: "clear", Aliases: []string{"reset", "new"}, Help: "forget the conversation"},
	{Name: "system", Args: "[TEXT|off]", Help: "instructions that come before the conversation"},
	{Name: "set", Args: "[NAME VALUE]", Help: "change a setting, as temperature 0.2; a VALUE of default undoes it"},
	{Name: "show", Help: "tell the model, the settings and what the conversation has"},
	{Name: "schema", Args: "FILE|off", Help: "hold answers to a JSON schema", File: true},
	{Name: "choices", Args: "A,B|off", Help: "hold answers to one of these texts"},
	{Name: "tokens", Help: "count the tokens of the conversation"},
	{Name: "timing", Help: "tell where the time of the last answer went"},
	{Name: "save", Args: "FILE [grpc]", Help: "write the conversation as an OpenAI request, or a gRPC one", File: true},
	{Name: "load", Args: "FILE", Help: "go on with a conversation that was saved", File: true},
	{Name: "bye", Aliases: []string{"quit", "exit", "q"}, Help: "leave (Ctrl-D too)"},
}

// ParseCommand tells whether a line is a command, finds it and gives its argument. A line that begins with a path is a
// message. name is what was typed, without the slash; command is nil if there is none of that name.
func ParseCommand(line string) (command *Command, name, arg string, ok bool) {
	rest, ok := strings.CutPrefix(line, "/")
	if !ok {
		return nil, "", "", false
	}
	end := strings.IndexFunc(rest, unicode.IsSpace)
	name = rest
	if end >= 0 {
		name, arg = rest[:end], strings.TrimSpace(rest[end:])
	}
	for _, r := range name {
		if !unicode.IsLetter(r) && r != '?' {
			return nil, "", "", false
		}
	}
	for i, c := range Commands {
		if c.Name == name {
			return &Commands[i], name, arg, true
		}
		for _, a := range c.Aliases {
			if a == name {
				return &Commands[i], name, arg, true
			}
		}
	}
	return nil, name, arg, true
}

// Nearest is the candidate that differs least from a name, or "" if none is like it.
func Nearest(name string, candidates []string) string {
	best, least := "", max(1, len(name)/3)+1
	for _, c := range candidates {
		if d := distance(name, c); d < least {
			best, least = c, d
		} else if best == "" && len(name) > 1 && strings.HasPrefix(c, name) {
			best = c
		}
	}
	return best
}

// distance counts the letters to insert, leave out, replace or swap with the next (optimal string alignment).
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	if len(x) > 64 || len(y) > 64 {
		return 64
	}
	d := make([][]int, len(x)+1)
	for i := range d {
		d[i] = make([]int, len(y)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(x)][len(y)]
}
