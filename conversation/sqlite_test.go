package conversation_test

import (
	"path/filepath"
	"testing"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/conversation/conversationtest"
)

// openIn opens SQLite stores in a folder, by name.
func openIn(dir string) conversationtest.Opener {
	return func(t *testing.T, name string, o conversation.Options) conversation.Store {
		t.Helper()
		s, err := conversation.OpenSQLite(t.Context(), conversation.SQLiteFiles{Data: filepath.Join(dir, name+".db")}, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() }) // some tests have closed it
		return s
	}
}

func TestSQLite(t *testing.T) { conversationtest.TestStore(t, openIn(t.TempDir())) }
