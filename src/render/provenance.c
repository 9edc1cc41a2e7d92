/*
 * provenance.c - the settings as they go into the poster, together with what is not as they say.
 *
 *     "tiles_from_draft": [7, 9]                 kept failing; cut from the enlarged draft
 *     "tiles_painted_again": [{"tile": 3, "seed": 5, "prompt": ".."}]      by `mural retry`
 *
 * A poster without either has exactly the settings that config_to_json writes.
 */
#include "render/render_int.h"

#include <stdlib.h>
#include <string.h>

/* Both lists, empty or not; NULL when memory is short. */
static json_t *lists_of(const struct journal_facts *facts)
{
    json_t *filled = json_array(), *again = json_array();
    bool    good = filled != NULL && again != NULL;

    for (uint32_t i = 0; i < facts->tile_count && good; i++) {
        const struct tile_fact *tile = &facts->tiles[i];
        json_t                 *entry;
        if (tile->status == TILE_FILLED)
            good = json_array_append_new(filled, json_integer((json_int_t)i + 1)) == 0;
        if ((!tile->has_seed && tile->prompt == NULL) || tile->status == TILE_FILLED) continue;
        entry = json_pack("{s:I}", "tile", (json_int_t)i + 1);
        good &= json_array_append(again, entry) == 0;
        if (tile->has_seed)
            good &= json_object_set_new(entry, "seed", json_integer((json_int_t)tile->seed)) == 0;
        if (tile->prompt != NULL)
            good &= json_object_set_new(entry, "prompt", json_string(tile->prompt)) == 0;
        json_decref(entry);
    }
    if (good)
        return json_pack("{s:o, s:o}", "tiles_from_draft", filled, "tiles_painted_again", again);
    json_decref(filled);
    json_decref(again);
    return NULL;
}

/* Everything that `wanted` says is said in `found` as well. */
static bool says_all(const char *found_json, const char *wanted_json)
{
    json_t     *found = json_loads(found_json, 0, NULL), *wanted = json_loads(wanted_json, 0, NULL);
    const char *key;
    json_t     *value;
    bool        fits = json_is_object(found) && json_is_object(wanted);

    json_object_foreach(wanted, key, value)
    {
        fits = fits && json_equal(json_object_get(found, key), value) == 1;
    }
    json_decref(found);
    json_decref(wanted);
    return fits;
}

bool provenance_fits(const struct config *used)
{
    struct picture_info info = {.w = 0};
    struct err          ignored = {.code = ERR_OK};
    char               *wanted = NULL;
    bool                fits = picture_info_read(&info, used->output, &ignored) == ERR_OK &&
                config_to_json(&wanted, used, &ignored) == ERR_OK;

    fits = fits && info.w == used->width_px && info.h == used->height_px &&
           info.bits == used->bits && (info.levels > 1) == used->pyramid;
    fits = fits && info.prompt != NULL && strcmp(info.prompt, used->prompt) == 0;
    fits = fits && info.settings_json != NULL && says_all(info.settings_json, wanted);
    os_free(wanted);
    picture_info_close(&info);
    return fits;
}

int provenance_json(char **text_out, const struct config *used, const struct journal_facts *facts,
                    struct err *err)
{
    int         rc = ERR_OK;
    char       *settings = NULL, *dumped = NULL;
    json_t     *object = NULL, *lists = NULL, *list;
    const char *name;

    TRY(config_to_json(&settings, used, err));
    object = json_loads(settings, 0, NULL);
    lists = lists_of(facts);
    if (object == NULL || lists == NULL) RAISE(err, ERR_HOST_MEM, 0, "no memory for metadata");
    json_object_foreach(lists, name, list)
    {
        if (json_array_size(list) > 0 && json_object_set(object, name, list) != 0)
            RAISE(err, ERR_HOST_MEM, 0, "no memory for metadata");
    }
    dumped = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9));
    if (dumped == NULL) RAISE(err, ERR_HOST_MEM, 0, "no memory for metadata");
    TRY(text_copy(text_out, dumped, "metadata", err));
out:
    json_decref(object);
    json_decref(lists);
    free(dumped);
    os_free(settings);
    return rc;
}
