package journal

// SchemaVersion is the version of the schema, stored in user_version. A journal of an earlier version climbs the
// ladder of migrate.go; whoever changes the schema adds a step to that.
const SchemaVersion = 5

// Times are Unix nanoseconds, 0 = never. Words are those of package state.
const schema = `
CREATE TABLE series (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE,            -- series UID, or ?<calling AE> for objects that have none
  study TEXT NOT NULL, modality TEXT NOT NULL, protocol TEXT NOT NULL, number INTEGER NOT NULL,
  calling TEXT NOT NULL, called TEXT NOT NULL, host TEXT NOT NULL,
  state TEXT NOT NULL, complete_by TEXT NOT NULL DEFAULT '',
  expected INTEGER NOT NULL, received INTEGER NOT NULL,
  first_at INTEGER NOT NULL, opened_at INTEGER NOT NULL, last_at INTEGER NOT NULL,
  complete_at INTEGER NOT NULL DEFAULT 0,
  reopened INTEGER NOT NULL DEFAULT 0,
  quality TEXT NOT NULL, channel TEXT NOT NULL, rule TEXT NOT NULL,
  told TEXT NOT NULL DEFAULT ''        -- evidence.Sums of its originals, those with told=1
) STRICT;
CREATE INDEX series_recent ON series(last_at);
CREATE INDEX series_open ON series(id) WHERE state='receiving';
CREATE TABLE instance (
  id INTEGER PRIMARY KEY,              -- grows with arrival
  series INTEGER NOT NULL REFERENCES series(id),
  kind TEXT NOT NULL,
  source INTEGER NOT NULL,             -- derived: id of the original; else 0
  sop TEXT NOT NULL, variant INTEGER NOT NULL, -- 0 first bytes under this UID, 1... other bytes (conflict)
  class TEXT NOT NULL, syntax TEXT NOT NULL,
  file TEXT NOT NULL, off INTEGER NOT NULL, size INTEGER NOT NULL, crc INTEGER NOT NULL,
  received INTEGER NOT NULL, number INTEGER NOT NULL, frames INTEGER NOT NULL,
  added INTEGER NOT NULL,              -- since when it may be sent: its receipt; of a high object when that was made
  quality TEXT NOT NULL, channel TEXT NOT NULL, rule TEXT NOT NULL,
  stage TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL DEFAULT 0,
  sigma REAL NOT NULL DEFAULT 0,
  gone INTEGER NOT NULL DEFAULT 0,     -- when the file was purged
  unwanted INTEGER NOT NULL DEFAULT 0, -- there were destinations and none of them takes originals
  told INTEGER NOT NULL DEFAULT 0,     -- what it told is in the sums of its series
  UNIQUE (series, sop, kind, variant)
) STRICT;
CREATE INDEX instance_queue ON instance(series, id) WHERE stage='queued';
CREATE INDEX instance_conflict ON instance(id) WHERE stage='conflict' AND gone=0;
CREATE INDEX instance_kept ON instance(id) WHERE gone=0 AND kind='original';
CREATE INDEX instance_source ON instance(source) WHERE source>0;
CREATE TABLE delivery (
  instance INTEGER NOT NULL REFERENCES instance(id),
  dest TEXT NOT NULL,
  series INTEGER NOT NULL,
  -- 2*original id, +1 for fast: oldest first, original before derived; 2*own id+1 for high
  ord INTEGER NOT NULL,
  state TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL DEFAULT 0,
  failures INTEGER NOT NULL DEFAULT 0, -- in a row, with images of others stored in between
  unsure INTEGER NOT NULL DEFAULT 0,   -- dest may have it: an attempt's answer was lost, or recovery found the file
  status INTEGER NOT NULL DEFAULT -1,  -- last DICOM status, -1 = none yet
  detail TEXT NOT NULL DEFAULT '', done_at INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (instance, dest)
) STRICT, WITHOUT ROWID;
CREATE INDEX delivery_queue ON delivery(dest, ord) WHERE state='queued';
CREATE INDEX delivery_suspect ON delivery(dest, next_at) WHERE state='queued' AND failures>=2;
CREATE INDEX delivery_refused ON delivery(dest) WHERE state IN ('refused','damaged');
CREATE INDEX delivery_series ON delivery(series, dest, state);
CREATE TABLE flag (                    -- what a person asked for; the file in spool/flag says the same
  key TEXT PRIMARY KEY,                -- series UID, which may not be here yet
  quality TEXT NOT NULL, why TEXT NOT NULL, who TEXT NOT NULL, at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE high (                    -- originals that get, or got, the high pass
  original INTEGER PRIMARY KEY REFERENCES instance(id),
  series INTEGER NOT NULL,
  stage TEXT NOT NULL,                 -- queued, denoised, failed
  reason TEXT NOT NULL, detail TEXT NOT NULL,
  fill INTEGER NOT NULL DEFAULT 0,     -- failed: a copy may stand in; queued and denoised: it is to be one, or is one
  attempts INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL DEFAULT 0,
  since INTEGER NOT NULL               -- when it was asked for
) STRICT;
CREATE INDEX high_series ON high(series);
CREATE INDEX high_queue ON high(series, original) WHERE stage='queued';
`
