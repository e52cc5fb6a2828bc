/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every limit and deadline of podflared, in one place. Those that an operator
 * may change are defaults here and options in config.h.
 * fork: constants only.
 */
#pragma once

#define SECOND_NS 1000000000ull

/* HTTP. */
#define LIMIT_HTTP_MEMORY      16384       /* bytes a connection may hold in libmicrohttpd */
#define LIMIT_HTTP_CONNECTIONS 4096u       /* fewer when RLIMIT_NOFILE is small */
#define DEFAULT_HTTP_S         60u         /* PODFLARE_HTTP_TIMEOUT, below */
#define LIMIT_HTTP_STALL_S     600u        /* streamed reply that the client does not take */
#define LIMIT_JSON_BODY        (4u << 20)  /* body of a JSON request */
#define LIMIT_JSON_VALUES      65536u      /* in it; building one takes some 100 bytes */
#define DEFAULT_REQUESTS_MIB   1024u       /* PODFLARE_REQUESTS_MIB, held.h */
#define LIMIT_DISCARD          (64u << 20) /* body read and dropped to deliver an error */
#define LIMIT_DISCARD_STRANGER (1u << 20)  /* the same without a valid key */
#define LIMIT_HELD_SMALL       65536u      /* bodies, code, answers that are not counted (held.h) */
#define LIMIT_LIST_PIECE       65536u /* of the list of sandboxes, made at once; and one more */
#define LIMIT_STREAM_BLOCK     32768u /* piece of a streamed reply of known length */

/* Lines of the log about requests (log_budget.h): of all that were not let in; and of each key. */
#define LOG_STRANGERS_BURST  100u
#define LOG_STRANGERS_SECOND 10u
#define LOG_KNOWN_BURST      5000u
#define LOG_KNOWN_SECOND     200u

/*
 * PODFLARE_HTTP_TIMEOUT: a connection without progress; and, because one byte now and then is
 * progress, the time from the start of a connection or its last answer to the end of the next
 * request's head, and from there to the end of a body that is only dropped. A JSON body may take
 * LIMIT_HTTP_JSON times as long. Uploads are streams: they may take any time.
 */
#define LIMIT_HTTP_JSON 10u

/* To begin requests in one turn of the loop (http_line.h). */
#define LIMIT_HTTP_TURN_NS (SECOND_NS / 500)

/* Values in requests. */
#define LIMIT_PATH           4095u  /* bytes of a file path in the guest */
#define LIMIT_ENV            256u   /* variables of one exec */
#define LIMIT_METADATA       64u    /* entries of a sandbox */
#define LIMIT_METADATA_BYTES 32768u /* all keys and values */
#define LIMIT_MEMORY_MIN_MIB 128
#define LIMIT_MEMORY_MAX_MIB 65536
#define LIMIT_VCPUS_MAX      32
#define DEFAULT_MEMORY_MIB   1024
#define DEFAULT_VCPUS        2
#define LIMIT_DISK_MIN_MIB   64
#define LIMIT_DISK_MAX_MIB   65536
#define DEFAULT_DISK_MIB     4096

/* Commands. */
#define DEFAULT_EXEC_S      300u        /* timeout of a call that names none */
#define LIMIT_EXEC_S        86400u      /* longest timeout */
#define DEFAULT_OUTPUT      (16u << 20) /* output_limit: bytes of each stream that are kept */
#define LIMIT_OUTPUT_MIN    (64u << 10)
#define LIMIT_OUTPUT_MAX    (256u << 20)
#define LIMIT_OUTPUT_SPARE  (1u << 20) /* more than output_limit that an agent may send */
#define LIMIT_ARGV          1024u      /* words */
#define LIMIT_TERMINAL      1000       /* columns or rows */
#define LIMIT_RESIZE_VALUES 16u        /* in a message with new ones */
#define LIMIT_AGENT_VALUES  64u        /* in one object of an agent: an entry, an end, an answer */
#define LIMIT_AGENT_LIST    8192u      /* in a list: 32 commands of 200 words each are 7000 */
#define LIMIT_EVENT         (8u << 20) /* one event of a guest, joined from its parts */
#define LIMIT_EXEC_PAST     256u       /* ended commands whose ids a sandbox remembers */
#define STDIN_WINDOW        65536u     /* bytes of stdin that the agent has not confirmed */

#define LIMIT_WATCHED 128u /* kept commands with a timeout; an agent keeps 32 */

/* One writes to a kept command: how long the one before may take to leave, and how often is asked.
 */
#define WRITER_LEAVES_NS (2 * SECOND_NS)
#define WRITER_RETRY_NS  (SECOND_NS / 50)

/* Terminals. */
#define LIMIT_MESSAGE     65536u           /* of a client */
#define TERMINAL_CLOSE_NS (30 * SECOND_NS) /* that it may take to take the end */

/* Sandboxes. */
#define LIMIT_SANDBOXES    1024u /* --max-sandboxes; fewer when descriptors are short */
#define LIMIT_STREAMS      60u   /* streams to one agent, which takes 64 */
#define LIMIT_OWN_STREAMS  4u    /* beside these: freezing, comparing, asking whether it lives */
#define LIMIT_IDLE_STREAMS 4u    /* of these, kept open for the next request */
#define LIMIT_HELD         (64u << 20) /* of a sandbox: code and stdin that wait, events (held.h) */
#define LIMIT_EXEC_QUEUE   256u        /* execs that wait in one sandbox */
#define DEFAULT_CREATE_S   120u        /* PODFLARE_CREATE_TIMEOUT */
#define DEFAULT_TEMPLATE_S 600u        /* PODFLARE_TEMPLATE_TIMEOUT */
#define DEFAULT_POOL       2u          /* --pool */
#define LIMIT_POOL         1024u
#define DEFAULT_FORK       32u /* --max-fork */
#define LIMIT_FORK         256u
#define LIMIT_SIZED        8u               /* template VMs of other sizes than their template's */
#define WARMUP_STDERR      1024u            /* end of a warm-up script's stderr that is kept */
#define POOL_DELAY_NS      (SECOND_NS / 50) /* after a create, so that the next one goes first */
#define POOL_RETRY_NS      SECOND_NS        /* after a failure; doubles */
#define POOL_RETRY_MAX_NS  (60 * SECOND_NS)
#define POOL_CLOCK_NS      (SECOND_NS / 100) /* one that is handed out may be off by so much */
#define POOL_CHECK_NS      (60 * SECOND_NS)
#define LIMIT_TREE         1024u /* ancestors that have ended, of GET /v1/tree */
#define LIMIT_TREE_DEPTH   2048u /* ancestors that a merge looks at */
#define CONSOLE_TAIL_LINES 6u
#define CONSOLE_TAIL_BYTES 1024u

/*
 * Requests to one VMM to fork that wait for their answers. Each holds six descriptors on its way,
 * and the kernel counts those against the limit of open files. Of one owner there is half of them,
 * where a template has several; and none is asked for while so many are under way that he has given
 * up.
 */
#define LIMIT_FORKS_IN_FLIGHT 16u
#define LIMIT_FORKS_GIVEN_UP  2u

/* New sandboxes that renew themselves at the same time: two for each processor. One that takes
 * longer than this does not count any more. */
#define TURN_NS (5 * SECOND_NS)

/* A guest's agent answers to FREEZE within 5 s, to THAW at once; a VM of the emulated host is slow.
 */
#define DEFAULT_FREEZE_S 20u              /* PODFLARE_FREEZE_TIMEOUT */
#define FORK_LIMIT_NS    (60 * SECOND_NS) /* that a sandbox stays frozen for its children */

/*
 * A silent exec: after DEFAULT_PING_S without a frame the agent is asked
 * whether it lives (PODFLARE_PING_AFTER); without an answer in DEFAULT_PONG_S
 * the sandbox is ended (PODFLARE_PONG_WITHIN). Only while an exec runs and the
 * client takes its output: idle means idle. A transfer of files is asked in the same way, and
 * fails by itself.
 */
#define DEFAULT_PING_S 30u
#define DEFAULT_PONG_S 60u
#define LIMIT_PROBE_S  10u /* the same when a stream broke, if that is less */

/*
 * Whoever called hears of the end of a command within this long after its timeout
 * (PODFLARE_EXEC_SLACK). The agent is told, and ends it in three quarters of that; half-way it is
 * cancelled as well, for an agent that has forgotten; at the end of it the sandbox is ended.
 */
#define DEFAULT_SLACK_S 2u
/* Where a guest is frozen, or a client sets the pace, it is looked at no more often than that. */
#define LATE_AGAIN_NS (SECOND_NS / 20)

/*
 * The reply to an exec begins with its first event, or after this time. An
 * agent that refuses the command (no such cwd) does so well before it, and the
 * refusal can still be an HTTP error.
 */
#define EXEC_HEADER_GRACE_NS (SECOND_NS / 4)

/* A stream that closes without a word may be the first sign of a VM that ends. */
#define AGENT_EOF_NS (SECOND_NS / 4)

/* Listing files. */
#define LIMIT_LIST_DEPTH 16
#define LIMIT_UPLOAD_ID  32
#define LIMIT_ENTRY_LINE (64u << 10) /* of one line: two paths, escaped */

/* Egress. */
#define LIMIT_GUEST_CONNECTS 64u /* that a VMM has unanswered, as in the VMM */
#define LIMIT_DENIED         32u /* entries of one exit event */
#define LIMIT_POLICY_TESTS   4u  /* at a time, half of them of one owner where there are others */
#define PROXY_RESTARTS       5u  /* in PROXY_RESTART_NS */
#define PROXY_RESTART_NS     (60 * SECOND_NS)
#define PROXY_ANSWER_NS      (20 * SECOND_NS) /* that a proxy may take to answer */
#define PROXY_LEAVE_NS       SECOND_NS        /* from the end of its orders to its exit */
#define PROXY_TURN_MESSAGES  64u              /* taken before everybody else has a turn */
#define PROXY_TURN_BYTES     65536u           /* the same; a message may have as many */
#define PROXY_POLL_MESSAGES  1024u            /* taken at once; its socket holds fewer */
#define PROXY_POLL_BYTES     (256u << 10)     /* the same */
#define PROXY_VALUES         (64u + 4u * PROXY_ADDRESSES_MAX) /* of a message */
#define PROXY_PEM_MAX        16384u                           /* of a certificate or key */
#define PROXY_ADDRESSES_MAX  64u                              /* of one name */

/* Comparing two sandboxes; of each (entries: also of a list of files): */
#define LIMIT_CHANGES       100000u     /* entries, as in the agent */
#define LIMIT_CHANGES_BYTES (32u << 20) /* of their lines */
#define LIMIT_CHANGE_LINE   (64u << 10) /* of one line: two paths, escaped */
#define LIMIT_HASH_BYTES    (2u << 20)  /* of paths in one HASHES; the agent takes 4 MiB */
#define LIMIT_DIFFS         4u          /* at a time, half of them of one owner (held.h) */
#define LIMIT_DIFF_PATHS    64u         /* of one request */
#define DIFF_LIMIT_NS       (120 * SECOND_NS)

/*
 * What is taken of all streams of one agent before everybody else has a turn; and, when its sandbox
 * ends, of what it had written: of one stream more than its socket holds.
 */
#define AGENT_TURN_FRAMES 64
#define AGENT_TURN_BYTES  (256u << 10)
#define AGENT_LAST_FRAMES 16384
#define AGENT_LAST_BYTES  (4u << 20)
#define AGENT_LAST_OF_ONE (256u << 10)
#define AGENT_LIST_COST   3u /* of entries that are parsed one by one: as so many bytes more */

/* Bytes that wait in the daemon for one stream; beyond, its source is not read. */
#define STREAM_OUT_MAX (160u << 10) /* frames to an agent */
#define NDJSON_HIGH    (64u << 10)  /* event lines to a client */
#define NDJSON_HELD    (64u << 10)  /* longest line of plain mode */

/* Stop. */
#define STOP_DRAIN_NS (2 * SECOND_NS) /* replies may finish */
#define STOP_VMM_NS   (5 * SECOND_NS) /* killed VMMs must be gone */
#define STOP_SWEEP_MS 5               /* until it is looked again what they have left behind */

/* State. */
#define DEFAULT_KEEP_DAYS    90u       /* PODFLARE_KEEP_DAYS: ended sandboxes are remembered */
#define DEFAULT_KEEP_MIB     256u      /* PODFLARE_KEEP_MIB: as long as all takes no more */
#define STORE_PRUNE_NS       SECOND_NS /* from a row that was written to a look at that */
#define STORE_PRUNE_ROWS     16        /* in one turn of the loop */
#define STORE_PRUNE_AGAIN_NS (SECOND_NS / 50)
#define STORE_LOG_PAGES      1000         /* of the database's log, before it is written back */
#define STORE_LOG_STEP       250          /* more of them, before that is tried again */
#define STORE_LOG_MANY       2000         /* ... before old rows are forgotten later */
#define STORE_LOG_MOST       3000         /* ... before the loop helps */
#define STORE_LOG_KEPT       "8388608"    /* bytes of its file, when it begins anew */
#define STORE_BUSY_START_MS  2000         /* another process writes, while it is opened */
#define STORE_BUSY_MS        100          /* another process writes: the loop waits no longer */
#define RESERVE_BYTES        (4ull << 20) /* of database and egress.jsonl, on a full disk */
#define RESERVE_OF_STORE     (2ull << 20) /* of these, what only the database gets */
#define RESERVE_PIECE        (128u << 10)
#define RESERVE_RETRY_NS     (5 * SECOND_NS)
