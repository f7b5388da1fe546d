package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

// manCmd writes the manual page from the same declarations that --help shows. The libraries for it leave out
// variables, defaults and examples.
type manCmd struct{}

// Help is what --help adds.
func (manCmd) Help() string {
	return `Examples:
  mmserve man | man -l -
  mmserve man > /usr/local/share/man/man1/mmserve.1`
}

// Run writes roff with the man macros.
func (manCmd) Run(c *kong.Context, out io.Writer) error {
	var b strings.Builder
	root := c.Model.Node
	fmt.Fprintf(&b, ".TH MMSERVE 1 \"\" \"mmserve %s\"\n.SH NAME\nmmserve \\- %s\n", roff(programVersion()),
		roff(strings.TrimSuffix(c.Model.Help, ".")))
	b.WriteString(".SH SYNOPSIS\n.B mmserve\n.I COMMAND\n[flags] [arguments]\n.SH FLAGS OF ALL COMMANDS\n")
	manFlags(&b, root.Flags)
	b.WriteString(".SH COMMANDS\n")
	for _, command := range commandsOf(root)[1:] {
		fmt.Fprintf(&b, ".SS mmserve %s\n%s\n", roff(usageOf(command)), roff(command.Help))
		manDetail(&b, command.Detail)
		for _, p := range command.Positional {
			manItem(&b, strings.ToUpper(p.Name), p.Help)
		}
		manFlags(&b, command.Node.Flags)
	}
	b.WriteString(".SH EXIT STATUS\n")
	for _, s := range exitTexts {
		manItem(&b, fmt.Sprint(s.status), s.text)
	}
	b.WriteString(".SH ENVIRONMENT\nMost flags have a variable of their own, which stands with them; the command line goes first.\n" +
		"NO_COLOR turns styles off, TERM=dumb everything but plain lines.\n")
	_, err := io.WriteString(out, b.String())
	return err
}

// usageOf is the command with its arguments.
func usageOf(c commandNode) string {
	words := []string{c.path}
	for _, p := range c.Positional {
		name := strings.ToUpper(p.Name)
		if p.IsSlice() {
			name += "…"
		}
		if !p.Required {
			name = "[" + name + "]"
		}
		words = append(words, name)
	}
	return strings.Join(words, " ")
}

func manFlags(b *strings.Builder, flags []*kong.Flag) {
	for _, f := range flags {
		if f.Hidden {
			continue
		}
		name := strings.Join(typedNames(f), ", ")
		if !f.IsBool() {
			name += " " + f.FormatPlaceHolder()
		}
		help := f.Help
		if len(f.Envs) > 0 {
			help += " Variable: " + strings.Join(f.Envs, ", ") + "."
		}
		manItem(b, name, help)
	}
}

func manItem(b *strings.Builder, name, help string) {
	fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(name), roff(help))
}

// manDetail writes paragraphs, and lines that are indented as they are.
func manDetail(b *strings.Builder, detail string) {
	if detail == "" {
		return
	}
	b.WriteString(".PP\n.nf\n")
	for _, row := range strings.Split(detail, "\n") {
		b.WriteString(roff(row) + "\n")
	}
	b.WriteString(".fi\n")
}

// roff escapes a text.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n", " ").Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}
