-- What opens everything else lies apart from it, so that a copy of the data is of no use once a key is gone.

-- hash_key, wrapped, is the key of all keyed hashes.
CREATE TABLE store (
  id BIGINT PRIMARY KEY CHECK (id = 1),
  master TEXT NOT NULL,
  hash_key BYTEA NOT NULL,
  created BIGINT NOT NULL
);

CREATE TABLE subject_keys (
  subject BYTEA PRIMARY KEY,
  master TEXT NOT NULL,
  wrapped BYTEA NOT NULL,
  created BIGINT NOT NULL
);

CREATE INDEX subject_keys_master ON subject_keys (master);
