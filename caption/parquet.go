package caption

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/parquet-go/parquet-go"
)

// rowsPerGroup bounds what of a Parquet file is in memory while it is written.
const rowsPerGroup = 20_000

// orderedGroup is a parquet.Group whose fields keep their order; Group itself sorts them.
type orderedGroup struct {
	parquet.Group
	order []string
}

// Fields gives the fields in the order of the table's columns.
func (g orderedGroup) Fields() []parquet.Field {
	fields := g.Group.Fields()
	slices.SortFunc(fields, func(a, b parquet.Field) int {
		return slices.Index(g.order, a.Name()) - slices.Index(g.order, b.Name())
	})
	return fields
}

func parquetSchema(cols []column) *parquet.Schema {
	g := orderedGroup{Group: parquet.Group{}}
	for _, c := range cols {
		var n parquet.Node
		switch c.kind {
		case integer:
			n = parquet.Int(64)
		case real:
			n = parquet.Leaf(parquet.DoubleType)
		case boolean:
			n = parquet.Leaf(parquet.BooleanType)
		default:
			n = parquet.String()
		}
		g.Group[c.name] = parquet.Optional(n)
		g.order = append(g.order, c.name)
	}
	return parquet.NewSchema("captions", g)
}

// writeParquet writes the journal's rows as a Parquet file.
func writeParquet(w io.Writer, j *Journal, c *Config) error {
	cols := columns(c)
	out := parquet.NewWriter(
		w,
		parquetSchema(cols),
		parquet.Compression(&parquet.Snappy),
		parquet.MaxRowsPerRowGroup(rowsPerGroup),
	)
	row := make(parquet.Row, len(cols))
	err := j.Each(func(r *Row, _ []byte) error {
		for i, col := range cols {
			v := col.value(r)
			defined := 1
			if v == nil {
				defined = 0
			}
			row[i] = parquet.ValueOf(v).Level(0, defined, i)
		}
		_, err := out.WriteRows([]parquet.Row{row})
		return err
	})
	if err != nil {
		return err
	}
	return out.Close()
}

// parquetEntries reads the columns of a Parquet file that name an image and its prompt.
func parquetEntries(r io.ReaderAt, size int64, give func(entry) error) (err error) {
	defer func() {
		if p := recover(); p != nil { // the library indexes into what a broken file says
			err = fmt.Errorf("not a Parquet file that can be read: %v", p)
		}
	}()
	f, err := parquet.OpenFile(r, size)
	if err != nil {
		return err
	}
	path, prompt := -1, -1
	for i, c := range f.Schema().Columns() {
		name := strings.ToLower(strings.Join(c, "."))
		switch {
		case path < 0 && (slices.Contains(listColumns, name) || name == "image.path"): // datasets keeps {bytes, path}
			path = i
		case name == "prompt":
			prompt = i
		}
	}
	if path < 0 {
		return fmt.Errorf("no column of %s", strings.Join(listColumns, ", "))
	}
	rows := make([]parquet.Row, 128)
	for _, g := range f.RowGroups() {
		if err := groupEntries(g, rows, path, prompt, give); err != nil {
			return err
		}
	}
	return nil
}

func groupEntries(g parquet.RowGroup, rows []parquet.Row, path, prompt int, give func(entry) error) error {
	reader := g.Rows()
	defer reader.Close()
	for {
		n, err := reader.ReadRows(rows)
		for _, row := range rows[:n] {
			var e entry
			for _, v := range row {
				switch {
				case v.IsNull():
				case v.Column() == path:
					e.Path = v.String()
				case v.Column() == prompt:
					e.Prompt = v.String()
				}
			}
			if err := give(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
