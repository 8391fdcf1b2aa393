-- Replays prepared requests: a line each of method, path, If-None-Match, "keyed" or "", and body, with tabs between.
-- Arguments: the file; a file of bearer tokens, which take turns, or "-"; and "again" (start over at the end) or "once"
-- (each may run only once).
local requests, position, again, threads, keyed = {}, 0, false, {}, 0
-- Replaced in each keyed request, so that no two carry the same Idempotency-Key.
local PLACEHOLDER = "idempotency-key-0000000000000000"
exhausted = 0

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  again = arguments[3] == "again"
  local tokens, lines = {}, {}
  if arguments[2] ~= "-" then
    for token in io.lines(arguments[2]) do tokens[#tokens + 1] = token end
  end
  for line in io.lines(arguments[1]) do lines[#lines + 1] = line end
  -- A few small requests that may be sent again are sent by every token in turn.
  local count = #lines
  if again and #lines[1] < 10000 then count = math.max(count, #tokens) end
  for index = 1, count do
    local line = lines[(index - 1) % #lines + 1]
    local method, path, etag, key, body = line:match("^([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)\t(.*)$")
    local headers = {}
    if #tokens > 0 then headers["Authorization"] = "Bearer " .. tokens[(index - 1) % #tokens + 1] end
    if etag ~= "" then headers["If-None-Match"] = etag end
    if key ~= "" then headers["Idempotency-Key"] = PLACEHOLDER end
    if body ~= "" then headers["Content-Type"] = "application/json" else body = nil end
    requests[#requests + 1] = wrk.format(method, path, headers, body)
  end
  math.randomseed(os.time())
  keyed = requests[1]:find(PLACEHOLDER, 1, true) and math.random(1, 999999) * 1000000000 or 0
end

function request()
  position = position + 1
  if position > #requests then
    if not again then exhausted = 1 end
    position = 1
  end
  if keyed == 0 then return requests[position] end
  keyed = keyed + 1
  local from, to = requests[position]:find(PLACEHOLDER, 1, true)
  return requests[position]:sub(1, from - 1) .. string.format("key-%028d", keyed) .. requests[position]:sub(to + 1)
end

function done(summary, latency)
  local errors = summary.errors
  local ran_out = 0
  for _, thread in ipairs(threads) do ran_out = ran_out + thread:get("exhausted") end
  io.write(string.format(
    '\nRESULT {"requests":%d,"microseconds":%d,"bytes":%d,"refused":%d,"broken":%d,"exhausted":%d,' ..
    '"p50":%d,"p99":%d,"worst":%d}\n',
    summary.requests, summary.duration, summary.bytes, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, ran_out,
    latency:percentile(50), latency:percentile(99), latency.max))
end
