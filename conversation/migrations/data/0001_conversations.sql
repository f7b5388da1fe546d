-- Times are microseconds since 1970. owner, tenant and every name are keyed hashes; profile, info and body are sealed.

CREATE TABLE subjects (
  id BYTEA PRIMARY KEY,
  owner BYTEA NOT NULL UNIQUE,
  tenant BYTEA NOT NULL,
  created BIGINT NOT NULL,
  state BIGINT NOT NULL,
  hold BIGINT NOT NULL,
  objections BIGINT NOT NULL,
  conversations BIGINT NOT NULL,
  bytes BIGINT NOT NULL,
  profile BYTEA NOT NULL
);

CREATE INDEX subjects_tenant ON subjects (tenant, id);

CREATE TABLE conversations (
  id BYTEA PRIMARY KEY,
  subject BYTEA NOT NULL REFERENCES subjects (id),
  tenant BYTEA NOT NULL,
  created BIGINT NOT NULL,
  updated BIGINT NOT NULL,
  last BIGINT NOT NULL,
  bytes BIGINT NOT NULL,
  state BIGINT NOT NULL,
  hold BIGINT NOT NULL,
  class BIGINT NOT NULL,
  keep_for BIGINT NOT NULL,
  expires BIGINT,
  info BYTEA NOT NULL
);

CREATE INDEX conversations_subject ON conversations (subject, updated, id);
CREATE INDEX conversations_expires ON conversations (expires) WHERE expires IS NOT NULL;
CREATE INDEX conversations_class ON conversations (tenant, class);

CREATE TABLE messages (
  conversation BYTEA NOT NULL,
  seq BIGINT NOT NULL,
  created BIGINT NOT NULL,
  corrected BIGINT NOT NULL,
  size BIGINT NOT NULL,
  body BYTEA NOT NULL,
  PRIMARY KEY (conversation, seq)
);

CREATE TABLE images (
  name BYTEA PRIMARY KEY,
  subject BYTEA NOT NULL,
  size BIGINT NOT NULL,
  body BYTEA NOT NULL
);

CREATE INDEX images_subject ON images (subject);

-- Which messages show which images.
CREATE TABLE shown (
  name BYTEA NOT NULL,
  conversation BYTEA NOT NULL,
  seq BIGINT NOT NULL,
  PRIMARY KEY (name, conversation, seq)
);

CREATE INDEX shown_conversation ON shown (conversation, seq);

-- Appends that have a key, which is name.
CREATE TABLE appends (
  name BYTEA PRIMARY KEY,
  conversation BYTEA NOT NULL,
  first BIGINT NOT NULL,
  last BIGINT NOT NULL,
  digest BYTEA NOT NULL
);

CREATE INDEX appends_conversation ON appends (conversation);
