package main

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite"
)

// TestNewerJournal: a journal of a later version is left as it is, and the exit status tells systemd
// that starting again does not help.
func TestNewerJournal(t *testing.T) {
	dir := t.TempDir()
	db, err := sql.Open("sqlite", filepath.Join(dir, "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("CREATE TABLE later (x); PRAGMA user_version = 1000"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "c.yaml")
	text := fmt.Sprintf("state_dir: %s\ndicom: {listen: '127.0.0.1:0'}\nhttp: {listen: '127.0.0.1:0'}\n"+
		"destinations: [{name: pacs, ae_title: PACS, address: '127.0.0.1:1'}]\n", dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut strings.Builder
	if code := run(t.Context(), []string{"serve", "--config", config}, &out, &errOut); code != exitNewer {
		t.Errorf("exit status %d: %s", code, errOut.String())
	}
	if !strings.Contains(errOut.String(), "newer") {
		t.Errorf("it says %q", errOut.String())
	}
	again, err := sql.Open("sqlite", filepath.Join(dir, "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	var tables int
	if err := again.QueryRow("SELECT count(*) FROM sqlite_schema WHERE name='later'").Scan(&tables); err != nil ||
		tables != 1 {
		t.Errorf("the journal was touched: %d, %v", tables, err)
	}
}
