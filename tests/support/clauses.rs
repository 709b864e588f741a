//! Every clause of the broker's contract, named once for all set-ups that keep it.

/// Hands the names of all clauses to a macro.
macro_rules! each_clause {
    ($for_each:ident) => {
        $for_each! {
            published_in_order_to_all
            only_what_was_subscribed
            nothing_is_missed_after_subscribe
            the_last_change_of_a_subscription_wins
            payloads_are_bytes
            live_and_kept_are_the_same
            concurrent_appenders_make_one_chain
            a_nonce_is_added_once
            pages_tell_where_they_stand
            histories_are_trimmed
            heads_of_many
            histories_outlive_their_record
            appending_is_fenced
            a_lost_tail_is_told_to_its_writer
            contributions_make_one_chain
            a_contribution_is_added_once
            contributions_go_by_weight_and_by_age
            the_latest_come_first
            records_are_made_once
            a_key_begins_once
            lost_records_are_restored
            claims_count_up
            facts_are_fenced
            one_releaser_wins
            one_ender_wins
            only_who_holds_it_ends_it
            keepers_follow
            groups_have_members_in_order
            one_charter_wins
            holdings_follow
            full_groups_take_nobody
            places_are_taken_once
            one_rule_wins
            rules_are_replaced_by_who_knows_them
            charters_follow_rules
            rules_are_listed_in_order
            the_list_follows_the_rules
            who_comes_and_goes_is_told
            crowds_are_told_of_together
            one_tells_who_is_gone
            appends_say_whom_they_reach
            the_living_are_told
            histories_are_cut
            talk_outlives_its_room
            nodes_live_expire_and_are_buried
        }
    };
}
