package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// completionCmd writes a shell's completions. They are written out rather than asked for at each key, as libraries for
// kong have it: no program starts while a person types.
type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help is what --help adds.
func (completionCmd) Help() string {
	return `Examples:
  mmserve completion bash > ~/.local/share/bash-completion/completions/mmserve
  mmserve completion zsh > "${fpath[1]}/_mmserve"
  mmserve completion fish > ~/.config/fish/completions/mmserve.fish`
}

// Run writes the script.
func (k completionCmd) Run(c *kong.Context, out io.Writer) error {
	list := commandsOf(c.Model.Node)
	write := map[string]func([]commandNode) string{
		"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion,
	}[k.Shell]
	_, err := io.WriteString(out, write(list))
	return err
}

// commandNode is a command and all that it takes.
type commandNode struct {
	*kong.Node
	path  string // "model pull"; empty for the program
	flags []*kong.Flag
	below []string // names of its commands
}

// commandsOf lists the program and its commands, those of commands too.
func commandsOf(root *kong.Node) (list []commandNode) {
	var walk func(n *kong.Node, path string, inherited []*kong.Flag)
	walk = func(n *kong.Node, path string, inherited []*kong.Flag) {
		c := commandNode{Node: n, path: path, flags: slices.Concat(inherited, n.Flags)}
		for _, child := range n.Children {
			if !child.Hidden {
				c.below = append(c.below, child.Name)
			}
		}
		list = append(list, c)
		for _, child := range n.Children {
			if !child.Hidden {
				walk(child, strings.TrimSpace(path+" "+child.Name), c.flags)
			}
		}
	}
	walk(root, "", nil)
	return list
}

// typedNames are the flag as it is typed, with its negation.
func typedNames(f *kong.Flag) (list []string) {
	list = append(list, "--"+f.Name)
	if f.Tag.Negatable != "" {
		list = append(list, "--no-"+f.Name)
	}
	if f.Short != 0 {
		list = append(list, "-"+string(f.Short))
	}
	return list
}

// enumOf are the values that a flag may have; none if it may have any.
func enumOf(f *kong.Value) (list []string) {
	for _, v := range strings.Split(f.Enum, ",") {
		if v != "" {
			list = append(list, v)
		}
	}
	return list
}

// findCommand is the shell code that has cmd be the command that was typed.
func findCommand(list []commandNode, words string) string {
	var b strings.Builder
	b.WriteString("  for word in " + words + "; do\n    case \"$cmd $word\" in\n")
	for _, c := range list[1:] {
		parent, _ := lastWord(c.path)
		fmt.Fprintf(&b, "      %q) cmd=%q ;;\n", parent+" "+c.Name, c.path)
	}
	b.WriteString("    esac\n  done\n")
	return b.String()
}

// lastWord parts a path of commands before its last.
func lastWord(path string) (before, last string) {
	i := strings.LastIndexByte(path, ' ')
	return path[:max(i, 0)], path[i+1:]
}

func bashCompletion(list []commandNode) string {
	var b strings.Builder
	b.WriteString("# bash completion for mmserve\n_mmserve() {\n  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} cmd= word flags= commands=\n")
	b.WriteString(findCommand(list, `"${COMP_WORDS[@]:1:COMP_CWORD-1}"`))
	b.WriteString("  case \"$cmd $prev\" in\n")
	for _, c := range list {
		for _, f := range c.flags {
			if values := enumOf(f.Value); len(values) > 0 && !f.IsBool() {
				fmt.Fprintf(&b, "    %q) COMPREPLY=($(compgen -W %q -- \"$cur\")); return ;;\n", c.path+" --"+f.Name, strings.Join(values, " "))
			}
		}
		for _, p := range c.Positional {
			if values := enumOf(p); len(values) > 0 {
				_, last := lastWord(c.path)
				fmt.Fprintf(&b, "    %q) COMPREPLY=($(compgen -W %q -- \"$cur\")); return ;;\n", c.path+" "+last, strings.Join(values, " "))
			}
		}
	}
	b.WriteString("  esac\n  case \"$cmd\" in\n")
	for _, c := range list {
		var flags []string
		for _, f := range c.flags {
			if !f.Hidden {
				flags = append(flags, typedNames(f)...)
			}
		}
		fmt.Fprintf(&b, "    %q) flags=%q commands=%q ;;\n", c.path, strings.Join(flags, " "), strings.Join(c.below, " "))
	}
	b.WriteString(`  esac
  case "$cur" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$cur")) ;;
    *)
      if [ -n "$commands" ]; then
        COMPREPLY=($(compgen -W "$commands" -- "$cur"))
      else
        compopt -o filenames 2>/dev/null
        local IFS=$'\n'
        COMPREPLY=($(compgen -f -- "$cur"))
      fi ;;
  esac
}
complete -F _mmserve mmserve
`)
	return b.String()
}

// described writes names with their help as zsh's _describe takes them.
func described(name, help string) string {
	help = strings.NewReplacer("'", "’", ":", `\:`, "\n", " ").Replace(firstSentence(help))
	return "'" + strings.ReplaceAll(name, ":", `\:`) + ":" + help + "'"
}

func firstSentence(help string) string {
	sentence, _, _ := strings.Cut(help, ". ")
	return strings.TrimSuffix(sentence, ".")
}

func zshCompletion(list []commandNode) string {
	var b strings.Builder
	b.WriteString("#compdef mmserve\n_mmserve() {\n  local cmd= word\n  local -a flags commands values\n")
	b.WriteString(findCommand(list, "${words[2,CURRENT-1]}"))
	b.WriteString("  case \"$cmd ${words[CURRENT-1]}\" in\n")
	for _, c := range list {
		for _, f := range c.flags {
			if values := enumOf(f.Value); len(values) > 0 && !f.IsBool() {
				fmt.Fprintf(&b, "    %q) values=(%s) ;;\n", c.path+" --"+f.Name, strings.Join(values, " "))
			}
		}
	}
	b.WriteString("  esac\n  if (( ${#values} )); then _describe value values; return; fi\n  case \"$cmd\" in\n")
	for _, c := range list {
		var flags, commands []string
		for _, f := range c.flags {
			for _, name := range typedNames(f) {
				flags = append(flags, described(name, f.Help))
			}
		}
		for _, child := range c.Children {
			if !child.Hidden {
				commands = append(commands, described(child.Name, child.Help))
			}
		}
		fmt.Fprintf(&b, "    %q)\n      flags=(%s)\n      commands=(%s) ;;\n", c.path, strings.Join(flags, " "), strings.Join(commands, " "))
	}
	b.WriteString(`  esac
  if [[ $PREFIX == -* ]]; then
    _describe flag flags
  elif (( ${#commands} )); then
    _describe command commands
  else
    _files
  fi
}
if [ "$funcstack[1]" = _mmserve ]; then _mmserve; else compdef _mmserve mmserve; fi
`)
	return b.String()
}

func fishCompletion(list []commandNode) string {
	quote := func(text string) string {
		return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`, "\n", " ").Replace(text) + "'"
	}
	var b strings.Builder
	b.WriteString("# fish completion for mmserve\nfunction __mmserve_at\n  set -l cmd ''\n  for word in (commandline -opc)[2..]\n    switch \"$cmd $word\"\n")
	for _, c := range list[1:] {
		parent, _ := lastWord(c.path)
		fmt.Fprintf(&b, "      case %s\n        set cmd %s\n", quote(parent+" "+c.Name), quote(c.path))
	}
	b.WriteString("    end\n  end\n  test \"$cmd\" = \"$argv[1]\"\nend\n")
	for _, c := range list {
		at := quote("__mmserve_at " + quote(c.path))
		for _, child := range c.Children {
			if !child.Hidden {
				fmt.Fprintf(&b, "complete -c mmserve -n %s -f -a %s -d %s\n", at, child.Name, quote(firstSentence(child.Help)))
			}
		}
		for _, f := range c.flags {
			fmt.Fprintf(&b, "complete -c mmserve -n %s -l %s", at, f.Name)
			if f.Short != 0 {
				fmt.Fprintf(&b, " -s %c", f.Short)
			}
			switch values := enumOf(f.Value); {
			case f.IsBool():
			case len(values) > 0:
				fmt.Fprintf(&b, " -x -a %s", quote(strings.Join(values, " ")))
			default:
				b.WriteString(" -r")
			}
			fmt.Fprintf(&b, " -d %s\n", quote(firstSentence(f.Help)))
		}
	}
	return b.String()
}
