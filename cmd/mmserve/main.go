// Command mmserve serves image+text-to-text models from Hugging Face checkpoints.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"github.com/alecthomas/kong"

	"github.com/mmserve/mmserve/internal/telemetry"
)

// cli is the command line. Only this package reads flags or the environment.
type cli struct {
	OrtLib    string      `name:"ort-lib" env:"MMSERVE_ORT_LIB" placeholder:"FILE" help:"ONNX Runtime shared library (default: the repository's fetched copy, then the system's)."`
	LogLevel  string      `enum:"debug,info,warn,error" default:"info" env:"MMSERVE_LOG_LEVEL" help:"Least severe log line to write (debug, info, warn, error)."`
	Version   versionFlag `short:"v" help:"Print the version and leave."`
	LogFormat string      `enum:"text,json" default:"text" env:"MMSERVE_LOG_FORMAT" help:"Log lines as text or json."`

	Serve      serveCmd      `cmd:"" help:"Serve a model over gRPC."`
	Caption    captionCmd    `cmd:"" help:"Describe images: on the terminal, or with -o into a file that the same command goes on with."`
	Batch      batchCmd      `cmd:"" help:"Answer a file of requests as OpenAI's batch API takes them."`
	Chat       chatCmd       `cmd:"" help:"Chat in the terminal, about images too."`
	Ask        askCmd        `cmd:"" help:"Ask one question, about images too, and write the answer."`
	Bench      benchCmd      `cmd:"" help:"Find out what a server carries: open-loop load, and a report."`
	Image      imageCmd      `cmd:"" help:"Tell what the model would see of image files: size, tiles, tokens."`
	Model      modelCmd      `cmd:"" help:"Fetch models from a hub, look at a model, or check it against reference values."`
	Doctor     doctorCmd     `cmd:"" help:"Show what was found on this machine and whether it works."`
	Keys       keysCmd       `cmd:"" help:"Make API keys."`
	Audit      auditCmd      `cmd:"" help:"Check an audit log, or look at it."`
	Subject    subjectCmd    `cmd:"" help:"Do what a person may ask of whoever keeps data about them: access, correct, restrict, delete, transfer, object."`
	Replay     replayCmd     `cmd:"" help:"Ask a request of the audit log again, and say whether the answer is the same to the bit."`
	Health     healthCmd     `cmd:"" help:"Fail unless a server takes requests."`
	VersionCmd versionCmd    `cmd:"" name:"version" help:"Print the version."`
	Completion completionCmd `cmd:"" help:"Write completions for a shell."`
	Man        manCmd        `cmd:"" help:"Write the manual page."`
	Help       helpCmd       `cmd:"" help:"Show what a command does and takes."`
}

// exitError carries the exit status of a command that has already said what is wrong.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit status. 2 is a wrong command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	args = helpArguments(args)
	status := 0
	exited := false
	k, err := newParser(&c, kong.Writers(stdout, stderr), kong.UsageOnError(),
		kong.Exit(func(code int) { status, exited = code, true }),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.BindTo(stdout, (*io.Writer)(nil))).Parse(args)
	if exited { // --help
		return status
	}
	if err == nil {
		err = emptyVariable(k)
	}
	if err == nil {
		err = checkRanges(k)
	}
	if err != nil {
		return fail(stderr, usageError{advised(c.Serve.located(err), args)})
	}
	level := new(slog.LevelVar)
	log := newLogger(stderr, c.LogLevel, c.LogFormat, level)
	err = k.Run(&c, log, level, rereader(func() (*cli, *kong.Context, error) { return parse(args) }))
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	}
	return fail(stderr, hinted(c.Serve.located(err)))
}

// newParser is the command line's, whose values go to c.
func newParser(c *cli, options ...kong.Option) *kong.Kong {
	options = append([]kong.Option{
		kong.Name("mmserve"), kong.Description("Serves image+text-to-text models straight from Hugging Face checkpoints."), flagVariables, stringMapper,
	}, options...)
	parser, err := kong.New(c, options...)
	if err != nil {
		panic(err) // the declarations are wrong
	}
	return parser
}

// parse reads a command line that was parsed before, with the files it names.
func parse(args []string) (*cli, *kong.Context, error) {
	c := new(cli)
	k, err := newParser(c, kong.Writers(io.Discard, io.Discard), kong.Exit(func(int) {})).Parse(args)
	return c, k, err
}

// mayBeEmpty are the flags that an empty value turns off.
var mayBeEmpty = []string{"admin-address"}

// emptyVariable is an error if a variable of the command's flags is set and empty: a template that was not filled in,
// rather than a wish for the default.
func emptyVariable(k *kong.Context) error {
	for _, flag := range k.Flags() {
		if slices.Contains(mayBeEmpty, flag.Name) {
			continue
		}
		for _, name := range flag.Envs {
			if value, ok := os.LookupEnv(name); ok && value == "" {
				return fmt.Errorf("the variable %s is empty: want a value for --%s, or no such variable", name, flag.Name)
			}
		}
	}
	return nil
}

// newLogger writes lines of l and above, which starts at level.
func newLogger(w io.Writer, level, format string, l *slog.LevelVar) *slog.Logger {
	if err := l.UnmarshalText([]byte(level)); err != nil {
		panic(err) // the flag's enum allows valid levels only
	}
	o := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(telemetry.TraceIDs(slog.NewJSONHandler(w, o)))
	}
	return slog.New(telemetry.TraceIDs(slog.NewTextHandler(w, o)))
}
